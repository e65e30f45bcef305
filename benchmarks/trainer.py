"""A LoRA run as one writes it with PEFT and transformers' Trainer: one process per grid point.

    python benchmarks/trainer.py --data FOLDER --output FOLDER --r 8 --seed 1

FOLDER has `train.tsv` and `dev.tsv` with the columns `sentence` and `label`. The recipe is that of
`python -m lora_exp task=agreement`. `datasets` is left out, which would only cost it time.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
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


def main() -> None:
    """Train, evaluate once, save the adapter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max_steps", type=int, default=30)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    given = parser.parse_args()

    set_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        given.model,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        dtype=torch.float32,
    )
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=given.r, lora_alpha=16, target_modules=["query", "value"]
    )
    model = get_peft_model(model, config)

    def encoded(split: str) -> list[dict]:
        with Path(given.data, f"{split}.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        tokens = tokenizer([row["sentence"] for row in rows], truncation=True, max_length=32)
        labels = [int(row["label"]) for row in rows]
        names = list(tokens)
        return [
            {name: tokens[name][i] for name in names} | {"labels": label}
            for i, label in enumerate(labels)
        ]

    arguments = TrainingArguments(
        output_dir=given.output,
        learning_rate=1e-3,
        max_steps=given.max_steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        warmup_steps=given.max_steps // 10,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        seed=given.seed,
        bf16=given.precision == "bf16",
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded("train"),  # type: ignore[arg-type]
        eval_dataset=encoded("dev"),  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {
            "accuracy": float(np.mean(np.argmax(found.predictions, -1) == found.label_ids))
        },
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
