"""Evaluation: every example of every validation split once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_exp.runs.predictions import Predictions
from lora_exp.tasks.metrics import measure
from lora_exp.train.encoding import Encoded
from lora_exp.train.forward import Piece, forward
from lora_exp.train.run import Run

if TYPE_CHECKING:
    from rich.progress import Progress

    from lora_exp.train.interruption import Interruption

TOKENS = {"cpu": 2048, "cuda": 32768}
"""Most tokens of a batch, by type of device: no more than keeps it busy."""
LARGEST = 700.0
"""Loss of which the exponential is still a number."""


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
    measured = _text if run.backbone.writes else _labels
    for split, name in zip(run.data.validation, _suffixes(list(run.data.validation)), strict=True):
        began = time.perf_counter()
        values = measured(run, split, precision, stop, bar)
        if values is None:
            return None
        lines.append({"split": split} | values | {"seconds": round(time.perf_counter() - began, 3)})
        found |= {f"{metric}{name}": value for metric, value in values.items()}
    for line in lines:
        run.record(**line)
    return found


def _labels(
    run: Run, split: str, precision: str, stop: Interruption, bar: Progress
) -> dict[str, float] | None:
    """Loss and metrics of a classifier, or of one that predicts a number."""
    data = run.data.validation[split]
    assert isinstance(data, Encoded)
    labels = torch.from_numpy(data.labels)
    width = run.model.config.num_labels
    assert width is not None
    outputs = torch.zeros(len(data), width)  # in the order of the split

    def note(chosen: Sequence[int], piece: Piece, logits: Tensor) -> None:
        outputs[list(chosen)] = logits.float().cpu()

    if not _passes(run, split, precision, stop, bar, note):
        return None
    run.ranks.sum(outputs)
    if not torch.isfinite(outputs).all():
        raise run.diverged(f"outputs on {split} are not finite")
    predictions = outputs.squeeze(-1) if labels.is_floating_point() else outputs.argmax(-1)
    values = measure(run.data.metrics, predictions.numpy(), labels.numpy())
    loss = run.plain_loss(outputs, labels).item()
    if not math.isfinite(loss):
        raise run.diverged(f"the loss on {split} is {loss}")
    if split == next(iter(run.data.validation)):
        step = run.progress.step
        run.said = Predictions(split, step, labels.tolist(), predictions.tolist())
    return {"loss": loss} | values


def _text(
    run: Run, split: str, precision: str, stop: Interruption, bar: Progress
) -> dict[str, float] | None:
    """Mean loss of a token that is to be written, and perplexity: its exponential."""
    sums = torch.zeros(2, dtype=torch.float64)  # of losses, of tokens

    def note(chosen: Sequence[int], piece: Piece, hidden: Tensor) -> None:
        count = len(piece.batch.labels)
        sums.add_(torch.tensor([run.plain_loss(hidden, piece.batch.labels).item() * count, count]))

    if not _passes(run, split, precision, stop, bar, note):
        return None
    loss = float(run.ranks.sum(sums)[0] / sums[1])
    if not math.isfinite(loss):
        raise run.diverged(f"the loss on {split} is {loss}")
    return {"loss": loss, "perplexity": math.exp(min(loss, LARGEST))}


def _passes(
    run: Run,
    split: str,
    precision: str,
    stop: Interruption,
    bar: Progress,
    note: Callable[[Sequence[int], Piece, Tensor], None],
) -> bool:
    """Take this rank's share of a split through the model; False after a signal.

    Args:
        run: that is evaluated.
        split: of validation.
        precision: as in `forward`.
        stop: asks to leave.
        bar: shows how far it is.
        note: gets the numbers of some examples, their piece, and what `forward` gives for it.
    """
    data = run.data.validation[split]
    task = bar.add_task(f"evaluating {split}", total=len(data), note="")
    run.model.eval()
    try:
        with torch.no_grad():
            for number, chosen in enumerate(data.by_length(TOKENS[run.device.type])):
                if stop.requested and run.ranks.count == 1:  # several have to agree first
                    return False
                if number % run.ranks.count == run.ranks.rank:
                    piece = Piece(run.backbone, data.batch(chosen).to(run.device), 0, run.own)
                    with forward([piece], precision) as (outputs,):
                        note(chosen, piece, outputs)
                bar.update(task, advance=len(chosen))
                run.heartbeat()
    finally:
        bar.remove_task(task)
        run.model.train()
    return True


def _suffixes(splits: list[str]) -> list[str]:
    return [""] + [f"_{split.removeprefix('validation_')}" for split in splits[1:]]
