"""Learning curves: of a run, and of runs that differ in nothing but their seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_exp.report.groups import Group, Summary
from lora_exp.runs import bounds
from lora_exp.runs.records import RunRecord

TRAINING = "training loss"
"""The curve that is not of a validation split."""


@dataclass(frozen=True)
class Curve:
    """A value over the epochs of a group: at each, of the seeds that were measured there."""

    name: str
    """A metric of the first validation split, or `training loss`."""
    epochs: list[float]
    mean: list[float]
    deviation: list[float | None]
    """Standard deviation over seeds; None where there is a single one."""


def curves(group: Group, most: int) -> list[Curve]:
    """The metric that selects the best epoch, the loss, and the loss in training.

    Args:
        group: whose runs have a metrics.jsonl, or part of one.
        most: points of a curve. Of more evaluations, some at even distances are kept; of more
            training losses, the means of as many equal stretches of lines.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for run in group.runs:
        training, evaluated = lines(run)
        wanted = [name for name in dict.fromkeys([group.selecting, "loss"]) if name is not None]
        for name in wanted:
            _add(found, name, _points(evaluated.values(), name))
        _add(found, TRAINING, _stretches(_points(training, "loss"), most))
    return [_together(name, points, most) for name, points in found.items() if points]


def lines(run: RunRecord) -> tuple[list[Mapping[str, Any]], dict[float, Mapping[str, Any]]]:
    """The lines of metrics.jsonl on training, and on the first validation split by epoch."""
    training: list[Mapping[str, Any]] = []
    evaluated: dict[float, Mapping[str, Any]] = {}
    split = None
    for line in map(bounds.plain, run.folder.metrics()):
        if not isinstance(line.get("epoch"), int | float):
            continue
        name = line.get("split")
        if name == "train":
            training.append(line)
        elif name != "test":
            split = split or name
            if name == split:
                evaluated[line["epoch"]] = line
    return training, evaluated


def evaluations(run: RunRecord) -> dict[float, Mapping[str, Any]]:
    """The evaluations on the first validation split, by epoch."""
    return lines(run)[1]


def evenly(values: Sequence[float], most: int) -> list[float]:
    """So many of them at even distances, the first and the last included."""
    if len(values) <= most:
        return [*values]
    return [values[round(n * (len(values) - 1) / (most - 1))] for n in range(most)]


Points = Iterable[tuple[float, float]]
"""Epochs and values."""


def _points(lines: Iterable[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Those of the lines that have a number of this name: people edit."""
    found = ((line["epoch"], line.get(name)) for line in lines)
    return [(epoch, value) for epoch, value in found if isinstance(value, int | float)]


def _add(found: dict[str, dict[float, list[float]]], name: str, points: Points) -> None:
    of = found.setdefault(name, {})
    for epoch, value in points:
        of.setdefault(epoch, []).append(value)


def _stretches(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """So few that each is the end and the mean of as many points as the others."""
    length = -(-len(points) // most)
    if length <= 1:
        return [*points]
    parts = [points[start : start + length] for start in range(0, len(points), length)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _together(name: str, points: Mapping[float, Sequence[float]], most: int) -> Curve:
    epochs = evenly(sorted(points), most)
    summaries = [summary for epoch in epochs if (summary := Summary.of(points[epoch]))]
    return Curve(
        name,
        epochs,
        [summary.mean for summary in summaries],
        [summary.deviation for summary in summaries],
    )
