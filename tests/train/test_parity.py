"""The loop against PEFT + transformers' Trainer: equal weights and batches give equal losses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_exp import methods, models, tasks
from lora_exp.runs.config import Config, LoraConfig, ModelConfig, TaskConfig, TrainConfig
from lora_exp.train.batches import epoch_order
from lora_exp.train.interruption import Interruption

STEPS = 20


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """200 rows of words, with a class and a number."""
    rng = random.Random(0)
    words = ["the", "doctor", "doctors", "pilot", "pilots", "waits", "wait", "near"]
    for split, rows in (("train", 200), ("dev", 20)):
        lines = ["text\tother\tlabel\tnumber"]
        for _ in range(rows):
            text, other = (" ".join(rng.choices(words, k=rng.randint(1, 20))) for _ in range(2))
            lines.append(f"{text}\t{other}\t{rng.randint(0, 2)}\t{rng.uniform(0, 5):.2f}")
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def recipe(table: Path, tiny: Path, regression: bool) -> Config:
    return Config(
        task=TaskConfig(
            name="table",
            data_dir=str(table),
            text=["text", "other"],
            label="number" if regression else "label",
            regression=regression,
        ),
        model=ModelConfig(str(tiny), dropout=0.0),
        lora=LoraConfig(r=4, alpha=8.0),
        train=TrainConfig(
            lr=5e-3,
            max_steps=STEPS,
            batch_size=8,
            max_length=30,
            warmup_ratio=0.2,
            weight_decay=0.1,
            log_every=1,
        ),
        outputs=str(table / "outputs"),
        device="cpu",
    )


@pytest.mark.parametrize("regression", [False, True])
def test_losses_equal_those_of_peft_and_trainer(regression: bool, table: Path, tiny: Path) -> None:
    config = recipe(table, tiny, regression)
    ours = losses_of_lora_exp(config)
    theirs = losses_of_peft(config)
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=2e-4)


def losses_of_lora_exp(config: Config) -> list[float]:
    from lora_exp.console import progress
    from lora_exp.runs.folder import RunFolder
    from lora_exp.train.loop import train
    from lora_exp.train.pack import Pack
    from lora_exp.train.run import Run
    from lora_exp.train.workplace import Workplace

    backbone, data = Workplace(torch.device("cpu")).prepare(config)
    folder = RunFolder(Path(config.outputs) / "run")
    folder.create(config, {})
    run = Run(config, folder, backbone, data, [], 1, shares=True)
    with progress() as bar:
        train(Pack("fp32"), [run], Interruption(), bar, lambda: [])
    return [line["loss"] for line in folder.metrics() if line["split"] == "train"]


def losses_of_peft(config: Config) -> list[float]:
    from peft import LoraConfig as PeftConfig
    from peft import TaskType, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    data, recipe = tasks.load(config.task), config.train
    backbone = models.load(config.model, data.outputs)
    initial = initial_weights(config, data.outputs)
    model: Any = get_peft_model(
        backbone.model,
        PeftConfig(
            task_type=TaskType.SEQ_CLS,
            r=config.lora.r,
            lora_alpha=int(config.lora.alpha),
            target_modules=["query", "value"],
        ),
    )
    taken = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = name.removeprefix("base_model.model.").removesuffix(".weight")
            own = own.replace(".modules_to_save", "").replace(".default", "")
            key = own if own in initial else f"{own}.weight"
            parameter.data.copy_(initial[key])
            taken.add(key)
    assert taken == initial.keys()

    order = [i for epoch in range(2) for i in epoch_order(200, config.seed, epoch)]
    rows = [
        {
            **backbone.tokenizer(
                *data.train.texts[i], truncation=True, max_length=recipe.max_length
            ),
            "labels": data.train.labels[i],
        }
        for i in order
    ]

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(rows)

    trainer = InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=f"{config.outputs}/peft",
            learning_rate=recipe.lr,
            max_steps=STEPS,
            per_device_train_batch_size=recipe.batch_size,
            warmup_steps=recipe.warmup_ratio,
            weight_decay=recipe.weight_decay,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(backbone.tokenizer),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def initial_weights(config: Config, outputs: int) -> dict[str, torch.Tensor]:
    """What a run of lora_exp starts its trained weights with."""
    backbone = models.load(config.model, outputs)
    methods.attach(backbone, config)
    return {name: p.detach().clone() for name, p in methods.trained(backbone.model).items()}
