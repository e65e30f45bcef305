"""Evaluation: every example of every validation split once."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from lora_exp.tasks.metrics import measure
from lora_exp.train.forward import Piece, forward
from lora_exp.train.run import Run

if TYPE_CHECKING:
    from rich.progress import Progress

    from lora_exp.train.interruption import Interruption

TOKENS = {"cpu": 2048, "cuda": 32768}
"""Most tokens of a batch, by type of device: no more than keeps it busy."""


def evaluate(
    run: Run, precision: str, stop: Interruption, bar: Progress
) -> dict[str, float] | None:
    """Measure a run and write the lines of metrics.

    Returns:
        The metrics of the first split under their own names, those of the others with the split's
        name behind (`accuracy_mismatched`); None if a signal came meanwhile: nothing is written.

    Raises:
        Diverged: if an output or the loss is not finite.
    """
    found: dict[str, float] = {}
    lines = []
    for split, name in zip(run.data.validation, _suffixes(list(run.data.validation)), strict=True):
        began = time.perf_counter()
        outputs = _outputs(run, split, precision, stop, bar)
        if outputs is None:
            return None
        labels = torch.from_numpy(run.data.validation[split].labels)
        if not torch.isfinite(outputs).all():
            raise run.diverged(f"outputs on {split} are not finite")
        regression = labels.is_floating_point()
        predictions = outputs.squeeze(-1) if regression else outputs.argmax(-1)
        values = measure(run.data.metrics, predictions.numpy(), labels.numpy())
        loss = run.loss(outputs, labels).item()
        if not math.isfinite(loss):
            raise run.diverged(f"the loss on {split} is {loss}")
        values = {"loss": loss} | values
        lines.append({"split": split} | values | {"seconds": round(time.perf_counter() - began, 3)})
        found |= {f"{metric}{name}": value for metric, value in values.items()}
    for line in lines:
        run.record(**line)
    return found


def _outputs(
    run: Run, split: str, precision: str, stop: Interruption, bar: Progress
) -> torch.Tensor | None:
    """[examples, classes] in fp32 on the CPU, in the order of the split; None after a signal."""
    data = run.data.validation[split]
    width = run.model.config.num_labels
    assert width is not None
    outputs = torch.zeros(len(data), width)
    task = bar.add_task(f"evaluating {split}", total=len(data), note="")
    run.model.eval()
    try:
        with torch.no_grad():
            for number, chosen in enumerate(data.by_length(TOKENS[run.device.type])):
                if stop.requested and run.ranks.count == 1:  # several have to agree first
                    return None
                if number % run.ranks.count == run.ranks.rank:
                    piece = Piece(run.backbone, data.batch(chosen).to(run.device), 0, run.layers)
                    with forward([piece], precision) as (logits,):
                        outputs[list(chosen)] = logits.float().cpu()
                bar.update(task, advance=len(chosen))
                run.heartbeat()
    finally:
        bar.remove_task(task)
        run.model.train()
    return run.ranks.sum(outputs)


def _suffixes(splits: list[str]) -> list[str]:
    return [""] + [f"_{split.removeprefix('validation_')}" for split in splits[1:]]
