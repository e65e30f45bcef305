"""Training steps to time: by lora_exp, and the same by PEFT, loralib and transformers alone.

Theirs is what `transformers.Trainer` does in a step, without what it does around it: collate with
padding to the longest of the batch, forward, loss, backward, clip, fused AdamW, schedule, clear the
gradients. The batches are those that lora_exp takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loralib
import peft
import torch
import transformers
from corpus import MINILM
from torch import nn

from lora_exp import models, tasks
from lora_exp.runs.config import Config, LoraConfig, ModelConfig, TaskConfig, TrainConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.train.batches import epoch_order
from lora_exp.train.pack import Pack
from lora_exp.train.run import Run
from lora_exp.train.workplace import Workplace

Step = Callable[[], object]
R, ALPHA = 8, 16


@dataclass(frozen=True)
class Recipe:
    """What both sides train."""

    data: Path
    """Folder with `cola/train.tsv` and `dev.tsv`."""
    outputs: Path
    """For run folders."""
    model: str = MINILM
    """As in `model.name_or_path`."""
    batch_size: int = 32
    precision: str = "fp32"
    method: str = "lora"
    max_length: int = 128
    device: str = "cpu"

    def config(self, seed: int = 1) -> Config:
        """As lora_exp takes it."""
        return Config(
            task=TaskConfig(
                name="cola",
                data_dir=str(self.data),
                text=["sentence"],
                metrics=["matthews_correlation"],
            ),
            model=ModelConfig(self.model),
            method=self.method,
            lora=LoraConfig(r=R, alpha=ALPHA),
            train=TrainConfig(
                lr=1e-4,
                batch_size=self.batch_size,
                precision=self.precision,
                max_length=self.max_length,
                warmup_ratio=0.06,
                weight_decay=0.1,
            ),
            seed=seed,
            device=self.device,
            outputs=str(self.outputs),
        )


# -- ours ----------------------------------------------------------------------------------------


def ours(recipe: Recipe, runs: int = 1) -> Pack:
    """A pack that is ready to step; its runs differ in their seeds."""
    place = Workplace(torch.device(recipe.device))
    pack = Pack(recipe.precision)
    for seed in range(1, runs + 1):
        config = recipe.config(seed)
        backbone, data = place.prepare(config)
        folder = RunFolder(recipe.outputs / f"{recipe.method}-{recipe.precision}-{seed}")
        folder.create(config, {})
        shares = place.can_share(config, backbone)
        pack.members.append(Run(config, folder, backbone, data, [], 1, shares=shares))
    for run in pack.members:
        run.model.train()
    return pack


# -- theirs --------------------------------------------------------------------------------------


def plain(recipe: Recipe, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """The backbone with a new head, as transformers makes it: trained in full."""
    place = models.locate(ModelConfig(recipe.model))
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        place, num_labels=2, dtype=dtype, **more
    )


def with_peft(recipe: Recipe, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """By PEFT, on query and value; adapters are in fp32, whatever the backbone is in."""
    lora = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=R,
        lora_alpha=ALPHA,
        target_modules=["query", "value"],
    )
    return peft.get_peft_model(plain(recipe, dtype, **more), lora)


def with_loralib(recipe: Recipe) -> Any:
    """By loralib: as in its examples, its layers in place of query and value."""
    model = plain(recipe)
    for name, module in list(model.named_modules()):
        if name.endswith(("self.query", "self.value")):
            sizes = module.in_features, module.out_features
            layer = loralib.Linear(*sizes, r=R, lora_alpha=ALPHA)
            layer.load_state_dict(module.state_dict(), strict=False)
            model.set_submodule(name, layer)
    loralib.mark_only_lora_as_trainable(model)
    model.classifier.requires_grad_(True)
    return model


def theirs(
    recipe: Recipe,
    model: Any,
    *,
    autocast: bool = False,
    padding: bool | str = True,
    order: Iterator[list[int]] | None = None,
) -> Step:
    """What Trainer does in a step.

    Args:
        recipe: both sides'.
        model: with what is trained requiring gradients.
        autocast: to bf16, as `TrainingArguments(bf16=True)` does.
        padding: `True` to the longest of the batch; `"max_length"` to `recipe.max_length`.
        order: numbers of the examples of each batch; None: as lora_exp takes them.
    """
    config, device = recipe.config(), recipe.device
    train = config.train
    tokenizer = models.load_tokenizer(config.model)
    collate = transformers.DataCollatorWithPadding(
        tokenizer, padding=padding, max_length=recipe.max_length
    )
    examples = tasks.load(config.task).train
    encoded = tokenizer(
        [texts[0] for texts in examples.texts], truncation=True, max_length=recipe.max_length
    )
    rows = [
        {name: values[i] for name, values in encoded.items()} | {"labels": int(label)}
        for i, label in enumerate(examples.labels)
    ]
    model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=train.lr,
        fused=True,
    )
    total = train.epochs * math.ceil(len(rows) / train.batch_size)
    warmup = math.ceil(train.warmup_ratio * total)
    schedule = transformers.get_linear_schedule_with_warmup(optimiser, warmup, total)
    chosen = order or batches(len(rows), train.batch_size, config.seed)

    def step() -> None:
        batch = collate([rows[i] for i in next(chosen)])
        inputs = {name: values.to(device) for name, values in batch.items()}
        lower = torch.autocast(device, torch.bfloat16) if autocast else nullcontext()
        with lower:
            loss = model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimiser.step()
        schedule.step()
        model.zero_grad()

    return step


def batches(examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """The batches as lora_exp takes them."""
    epoch = 0
    while True:
        order = epoch_order(examples, seed, epoch)
        for start in range(0, examples, batch_size):
            yield order[start : start + batch_size].tolist()
        epoch += 1


def grouped(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Batches as Trainer's `LengthGroupedSampler` makes them, in random order, so that a few of
    them are as long as all are on average."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    torch.manual_seed(1)
    order = list(get_length_grouped_indices(lengths, batch_size))
    starts = torch.randperm(len(order) // batch_size).mul(batch_size).tolist()
    for start in starts:
        yield order[start : start + batch_size]
