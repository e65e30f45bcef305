"""Groups of runs as a table: `--rows method,lora.r --columns task`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_exp.errors import UserError, nearest
from lora_exp.report.groups import Group, Summary
from lora_exp.report.significance import LEVEL, wins
from lora_exp.report.table import JOINED, Cell, Table
from lora_exp.report.units import DECIMALS, in_percent, lower_is_better, millions, scale
from lora_exp.runs.selector import text_of
from lora_exp.text import count, duration, size

ROWS, COLUMNS = ("model", "method"), ("task",)
"""What a table has if nobody says otherwise."""
GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
"""In the order of the published tables."""
FIRST = ("task", "model", "method", "placement", "lora.r", "lora.alpha", "train.lr")
"""The keys that people tell groups apart by."""
NONE = "\u2013"
"""Where there is no such run."""
RULE = (
    f"Bold: the best mean, where a paired t-test over the seeds that it shares with each of the "
    f"others gives p < {LEVEL:g} (two-sided) every time."
)
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Place:
    """A group in the table, measured by one metric."""

    row: Key
    column: Key
    group: Group
    metric: str | None

    @cached_property
    def summary(self) -> Summary | None:
        """None where no run has the metric."""
        return None if self.metric is None else self.group.summary(self.metric)


class Pivot:
    """
    Args:
        groups: what the table is of.
        rows: keys, as filters have them, that make a row. Where groups that differ would share a
            cell, the keys that tell them apart are added: nothing is averaged over but seeds.
        columns: keys that make a column.
        metrics: a column for each; none: the main metric of each group.

    Raises:
        UserError: for a metric that no run has.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        rows: Sequence[str] = ROWS,
        columns: Sequence[str] = COLUMNS,
        metrics: Sequence[str] = (),
    ) -> None:
        _check(metrics, groups)
        self.groups, self.columns, self.metrics = groups, list(columns), list(metrics)
        self.rows = [*rows, *telling(groups, [*rows, *columns])]
        self.places = [
            Place(_key(group, self.rows), _key(group, columns), group, metric)
            for group in groups
            for metric in metrics or (group.main_metric,)
        ]

    def table(self) -> Table:
        """The table for people."""
        rows = _sorted({place.row for place in self.places})
        columns = self._columns()
        at = {(p.row, p.column, p.metric if self.metrics else None): p for p in self.places}
        best = self.best()
        mixed = {
            column for column, metric in columns if not metric and len(self._measured[column]) > 1
        }
        averaged = self.columns == ["task"] and len(columns) > 1 and len(self.metrics) < 2
        body = []
        for row in rows:
            found = [at.get((row, column, metric)) for column, metric in columns]
            cells = [Cell(text_of(value)) for value in row]
            cells += [
                Cell(NONE)
                if place is None
                else Cell(_told(place, named=place.column in mixed), id(place) in best)
                for place in found
            ]
            if averaged:
                cells.append(Cell(_average(found)))
            body.append(cells + _costs([place.group for place in found if place is not None]))
        header = [*self.rows, *(self._heading(*column) for column in columns)]
        header += ["average"] * averaged + ["parameters", "time of a run", "memory"]
        runs = [run for group in self.groups for run in group.runs]
        return Table(
            title=f"{count(len(runs))} in {count(len(self.groups), 'group')}",
            header=header,
            rows=body,
            notes=self.notes(averaged=averaged),
            records=[self._record(place, id(place) in best) for place in self.places],
            labels=len(self.rows),
        )

    def ordered(self) -> list[Place]:
        """The places, column by column, each from its first row to its last."""
        metrics = {name: number for number, name in enumerate(self.metrics)}
        return sorted(
            self.places,
            key=lambda p: (_order(p.column), _order(p.row), metrics.get(p.metric or "", 0)),
        )

    def _columns(self) -> list[tuple[Key, str | None]]:
        keys = _sorted({place.column for place in self.places})
        return [(key, metric) for key in keys for metric in self.metrics or (None,)]

    def _heading(self, column: Key, metric: str | None) -> str:
        """The values of the keys, and the metric where all groups of the column have the same."""
        names = self._measured[column]
        name = metric or (next(iter(names)) if len(names) == 1 else None)
        words = [
            text_of(value) if key == "task" else f"{key}={text_of(value)}"
            for key, value in zip(self.columns, column, strict=True)
        ]
        return "\n".join([*words, *([name] if name else [])])

    @cached_property
    def _measured(self) -> dict[Key, set[str]]:
        """By the values of a column's keys, the metrics that its places have."""
        found: dict[Key, set[str]] = {}
        for place in self.places:
            found.setdefault(place.column, set()).update([place.metric] if place.metric else [])
        return found

    def best(self) -> set[int]:
        """The ids of the places whose mean is the best and is told from all others that it competes
        with: those of the same task and metric, in its column unless the tasks are the rows."""
        contests: dict[Key, list[Place]] = {}
        for place in self.places:
            if place.summary is not None:
                column = () if "task" in self.rows else place.column
                key = (place.group.value_of("task"), place.metric, column)
                contests.setdefault(key, []).append(place)
        best = set()
        for contest in contests.values():
            metric = contest[0].metric or ""
            sign = -1 if lower_is_better(metric) else 1
            first, *others = sorted(contest, key=lambda p: -sign * (p.summary or _never()).mean)
            values = [place.group.values(metric) for place in others]
            if wins(first.group.values(metric), values):
                best.add(id(first))
        return best

    def _record(self, place: Place, best: bool) -> dict[str, Any]:
        group, summary = place.group, place.summary
        keys = dict(zip(self.rows, place.row, strict=True))
        keys |= dict(zip(self.columns, place.column, strict=True))
        return keys | {
            "group": group.name,
            "metric": place.metric,
            "mean": summary and summary.mean,
            "standard_deviation": summary and summary.deviation,
            "median": summary and summary.median,
            "seeds": sorted(group.values(place.metric)) if place.metric else [],
            "significantly_best": best,
            "unfinished": group.unfinished,
            "trainable_parameters": next(iter(group.of_results("trainable_parameters")), None),
            "train_seconds": _mean(group.of_results("train_seconds")),
            "peak_memory_bytes": max(group.of_results("peak_memory_bytes"), default=None),
        }

    def notes(self, *, averaged: bool = False) -> list[str]:
        """How the numbers came about."""
        notes = [
            "Mean ± standard deviation (median; seeds) of the selected evaluation of each run."
        ]
        if any(in_percent(place.metric or "") for place in self.places):
            notes[0] += " Fractions in percent."
        notes.append(RULE)
        if averaged:
            notes.append("Average: of the means of all tasks, as the published tables have it.")
        return notes


def _check(metrics: Sequence[str], groups: Sequence[Group]) -> None:
    known = {name for group in groups for name in group.metrics}
    for metric in metrics:
        if known and metric not in known:
            hint = nearest(metric, known, kind="metrics")
            raise UserError(f"--metric {metric}: no run has it. {hint}")


def telling(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """Further keys that tell groups apart which have the same values of these; as few as a look at
    one after the other finds."""
    added: list[str] = []
    while True:
        cells = _cells(groups, [*keys, *added])
        shared = [members for members in cells if len(members) > 1]
        if not shared:
            return added
        rest = [key for key in _candidates(shared) if key not in added]
        added.append(
            next(key for key in rest if any(len(_cells(members, [key])) > 1 for members in shared))
        )


def _candidates(shared: Sequence[Sequence[Group]]) -> Iterator[str]:
    """Keys in the order in which they would be looked at; all groups have other names."""
    yield from FIRST
    yield from sorted({key for members in shared for group in members for key in group.deciding})
    yield from ("model.init_from", "task.data_dir", "group", "name")


def _cells(groups: Sequence[Group], keys: Sequence[str]) -> list[list[Group]]:
    found: dict[Key, list[Group]] = {}
    for group in groups:
        found.setdefault(_key(group, keys), []).append(group)
    return list(found.values())


def _key(group: Group, keys: Iterable[str]) -> Key:
    return tuple(_hashable(group.value_of(key)) for key in keys)


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value


def _sorted(keys: Iterable[Key]) -> list[Key]:
    return sorted(keys, key=_order)


def _order(key: Key) -> list[tuple[int, Any]]:
    """By numbers, then GLUE's tasks as published, then all else by its text."""

    def place(value: Any) -> tuple[int, Any]:
        if isinstance(value, int | float):
            return (0, value)
        return (1, GLUE.index(value)) if value in GLUE else (2, text_of(value))

    return [place(value) for value in key]


def _told(place: Place, *, named: bool) -> str:
    """A cell, with its metric's name if the heading has none: no line is broken inside what belongs
    together."""
    parts = []
    if place.summary is not None:
        parts += [place.metric or ""] * named
        parts.append(spread(place.summary, place.metric or ""))
        middle = place.summary.median * scale(place.metric or "")
        parts.append(f"({middle:.{DECIMALS}f};{JOINED}{place.summary.seeds})")
    elif place.group.results:
        parts.append("not measured")
    parts += [state.replace(" ", JOINED) for state in place.group.unfinished]
    return " ".join(parts)


def spread(summary: Summary, metric: str) -> str:
    """`87.21 ± 0.30`."""
    factor = scale(metric)
    text = f"{summary.mean * factor:.{DECIMALS}f}"
    if summary.deviation is None:
        return text
    return f"{text}{JOINED}±{JOINED}{summary.deviation * factor:.{DECIMALS}f}"


def _average(places: Sequence[Place | None]) -> str:
    """Of the means, if all are there and in percent."""
    means = [
        place.summary.mean * scale(place.metric)
        for place in places
        if place is not None and place.summary is not None and in_percent(place.metric or "")
        if place.metric is not None
    ]
    return f"{sum(means) / len(means):.{DECIMALS}f}" if len(means) == len(places) else NONE


def _costs(groups: Sequence[Group]) -> list[Cell]:
    """Trained parameters, training time of a run and peak memory of the groups of a row."""
    counts = {
        millions(number) for group in groups for number in group.of_results("trainable_parameters")
    }
    times = [seconds for group in groups for seconds in group.of_results("train_seconds")]
    memory = [used for group in groups for used in group.of_results("peak_memory_bytes")]
    return [
        Cell(" ".join(sorted(counts))),
        Cell(duration(sum(times) / len(times)) if times else ""),
        Cell(size(max(memory)) if memory else ""),
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _never() -> Summary:
    raise AssertionError
