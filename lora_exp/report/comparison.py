"""Runs side by side: what differs, how they learned, what came of it, where they disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from lora_exp.report import examples, texts
from lora_exp.report.curves import evaluations, evenly
from lora_exp.report.described import configured, origin
from lora_exp.report.groups import Group, grouped
from lora_exp.report.pivot import NONE
from lora_exp.report.significance import paired_t, told
from lora_exp.report.table import MINUS, Cell, Table
from lora_exp.report.units import DECIMALS, in_percent, scale
from lora_exp.runs import predictions
from lora_exp.runs.predictions import Predictions
from lora_exp.runs.records import RunRecord
from lora_exp.runs.selector import value_of
from lora_exp.text import duration, size

CURVE_ROWS = 10
FINE = 4
"""Decimals of what is not in percent."""
SHOWN = 5
"""Most examples of a disagreement that are shown."""


class Comparison:
    """
    Args:
        runs: two or more; each of the others is tested against the first.
        siblings: all runs among which the other seeds of their groups are looked for.
    """

    def __init__(self, runs: Sequence[RunRecord], siblings: Sequence[RunRecord]) -> None:
        self.runs = runs
        self.names = [chr(ord("A") + number) for number in range(len(runs))]
        alike = {_stem(run) for run in runs}
        near = (run for run in siblings if _stem(run) in alike)  # to read no more than these
        groups = {group.name: group for group in grouped(near) if group.name}
        self.groups = [groups.get(run.group) or Group([run]) for run in runs]

    def tables(self) -> Iterator[Table]:
        """One for each question that the runs have an answer to."""
        yield self._standing()
        yield self._differences()
        for table in (self._curves(), self._metrics()):
            if table.rows:
                yield table
        for number in range(1, len(self.runs)):
            yield from self._answers(number)
            yield from self._texts(number)

    def _table(
        self,
        title: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        notes: Sequence[str] = (),
        *,
        labels: int | None = None,
    ) -> Table:
        cells = [[Cell(text) for text in row] for row in rows]
        width = len(header) if labels is None else labels
        return Table(title, [*header], cells, [*notes], [], labels=width)

    def _standing(self) -> Table:
        rows = [
            [name, run.name, run.state, next(iter(run.why.splitlines()), "")]
            for name, run in zip(self.names, self.runs, strict=True)
        ]
        return self._table("Runs", ["", "run", "state", "reason"], rows)

    # -- what differs --------------------------------------------------------------------------

    def _differences(self) -> Table:
        written = [{**configured(run), **origin(run)} for run in self.runs]
        rows = []
        for key in dict.fromkeys(key for one in written for key in one):
            values = [one.get(key, NONE) for one in written]
            if len({*values}) > 1:
                rows.append([key, *values])
        notes = self._content()
        if not rows:
            notes.insert(0, "Nothing that is written down of them differs.")
        return self._table("What differs", ["", *self.names], rows, notes)

    def _content(self) -> list[str]:
        """Groups cover config and content: the same config in another group has other content."""
        notes = []
        first = self.groups[0]
        for name, group in zip(self.names[1:], self.groups[1:], strict=True):
            if first.name == group.name or not (first.name and group.name):
                continue
            if first.deciding == group.deciding:
                notes.append(
                    f"{self.names[0]} and {name}: same config, other content: of the data, the "
                    "backbone or the adapter to start from."
                )
        return notes

    # -- how they learned ----------------------------------------------------------------------

    def _curves(self) -> Table:
        curves = [evaluations(run) for run in self.runs]
        split = next((one["split"] for curve in curves for one in curve.values()), "")
        metrics = [
            metric
            for metric in dict.fromkeys([*(g.selecting for g in self.groups), "loss"])
            if metric is not None
        ]
        epochs = sorted({epoch for curve in curves for epoch in curve})
        rows = []
        for epoch in evenly(epochs, CURVE_ROWS):
            lines = [_until(curve, epoch) for curve in curves]
            numbers = [
                _number(metric, line.get(metric)) if line else ""
                for metric in metrics
                for line in lines
            ]
            rows.append([f"{epoch:g}", *numbers])
        header = ["epoch", *(f"{metric} {name}" for metric in metrics for name in self.names)]
        shown = f", {len(rows)} of {len(epochs)} evaluations" if len(rows) < len(epochs) else ""
        return self._table(f"Learning curves on {split}{shown}", header, rows, labels=1)

    # -- what came of it -----------------------------------------------------------------------

    def _metrics(self) -> Table:
        results = [run.result or {} for run in self.runs]
        names = dict.fromkeys(name for result in results for name in result.get("metrics", {}))
        rows = []
        for metric in names:
            values = [result.get("metrics", {}).get(metric) for result in results]
            rows.append(
                [
                    metric,
                    *(_number(metric, value) for value in values),
                    *(test for n in range(1, len(self.runs)) for test in self._tests(metric, n)),
                ]
            )
        if rows:
            rows += [[name, *texts, *self._blank] for name, texts in _costs(results)]
        tests = [
            heading
            for name in self.names[1:]
            for heading in (f"{name} - {self.names[0]}", "over examples", "over seeds")
        ]
        notes = []
        if rows:
            notes.append(
                "Fractions in percent. Over examples: of the first validation split, at the "
                "selected evaluation, or the texts of the test split. Over seeds: a paired t-test "
                "over the seeds that both groups have."
            )
        return self._table("Metrics", ["", *self.names, *tests], rows, notes, labels=1)

    @property
    def _blank(self) -> list[str]:
        return [""] * 3 * (len(self.runs) - 1)

    def _tests(self, metric: str, number: int) -> list[str]:
        """Of one run against the first: the difference, and the p of both tests."""
        first, other = self.runs[0].result or {}, self.runs[number].result or {}
        values = [result.get("metrics", {}).get(metric) for result in (first, other)]
        gap = "" if None in values else _number(metric, values[1] - values[0], sign="+")
        said = self._said(number)
        if metric == "bleu":
            corpus = value_of(self.runs[0], "task.corpus")
            found = texts.compare_bleu(corpus, self._written[0], self._written[number])
        else:
            found = examples.tested(metric, *said) if said else None
        by_example = f"{told(found.p)} ({found.test})" if found else NONE
        return [gap.replace("-", MINUS), by_example, self._over_seeds(metric, number)]

    def _over_seeds(self, metric: str, number: int) -> str:
        first, other = self.groups[0], self.groups[number]
        if first.name == other.name:
            return NONE
        ours, theirs = other.values(metric), first.values(metric)
        p = paired_t(ours, theirs)
        shared = len({*ours} & {*theirs})
        return NONE if p is None else f"{told(p)} ({shared} seeds)"

    # -- where they disagree -------------------------------------------------------------------

    def _said(self, number: int) -> tuple[Predictions, Predictions] | None:
        """What the first run and another said of the same examples; None if that is not known."""
        first, other = self._kept[0], self._kept[number]
        if first is None or other is None or not examples.comparable(first, other):
            return None
        return first, other

    @cached_property
    def _kept(self) -> list[Predictions | None]:
        """Of each run, those of the evaluation that its result is of."""
        kept = []
        for run in self.runs:
            step = (run.result or {}).get("best_step")
            found = predictions.read(run.folder.predictions).values()
            kept.append(next((said for said in found if said.step == step), None))
        return kept

    @cached_property
    def _written(self) -> list[texts.Texts]:
        """What each run wrote for the test split."""
        return [texts.generated(run) for run in self.runs]

    def _answers(self, number: int) -> Iterator[Table]:
        said = self._said(number)
        if said is None:
            return
        first, other = said
        numbers = examples.differing(first, other)
        total, pair = len(first.labels), f"{self.names[0]} and {self.names[number]}"
        title = f"{pair} answer {len(numbers):,} of {total:,} examples of {first.split} differently"
        notes = []
        if first.of_classes:
            alone = examples.only_right(first, other)
            notes.append(
                f"{self.names[0]} alone is right in {alone[0]:,}, {self.names[number]} alone in "
                f"{alone[1]:,}."
            )
        else:  # nearly all differ; the most telling first
            gaps = {n: abs(first.predictions[n] - other.predictions[n]) for n in numbers}
            numbers.sort(key=lambda n: -gaps[n])
        rows = [
            [
                str(n),
                *map(self._named, (first.labels[n], first.predictions[n], other.predictions[n])),
            ]
            for n in numbers[:SHOWN]
        ]
        header = ["example, from 0", "right", self.names[0], self.names[number]]
        yield self._table(title, header, rows, notes)

    def _named(self, answer: float) -> str:
        """A class by its name, where the config has it."""
        labels = value_of(self.runs[0], "task.labels")
        return labels[answer] if labels and isinstance(answer, int) else f"{answer:g}"

    def _texts(self, number: int) -> Iterator[Table]:
        first, other = self._written[0], self._written[number]
        both = texts.shared(first, other)
        if not both:
            return
        unlike = [one for one in both if first[one]["output"] != other[one]["output"]]
        rows = [
            row
            for source in unlike[:SHOWN]
            for row in (
                ["source", source],
                [self.names[0], first[source]["output"]],
                [self.names[number], other[source]["output"]],
                ["references", "\n".join(first[source]["references"])],
            )
        ]
        pair = f"{self.names[0]} and {self.names[number]}"
        title = f"{pair} write {len(unlike):,} of {len(both):,} texts differently"
        table = self._table(title, ["", "text"], rows)
        yield Table(table.title, table.header, table.rows, [], [], 2, {*range(3, len(rows), 4)})


# -- what is written of a run ----------------------------------------------------------------------


def _stem(run: RunRecord) -> str:
    """What the names of a group's runs have in common."""
    return run.name.rpartition("-seed")[0]


def _until(curve: Mapping[float, Mapping[str, Any]], epoch: float) -> Mapping[str, Any] | None:
    """The last evaluation up to an epoch; None after the run's end, or before its first."""
    before = [one for one in curve if one <= epoch]
    return curve[max(before)] if before and epoch <= max(curve) else None


def _number(metric: str, value: float | None, sign: str = "") -> str:
    """In percent, if it is a fraction."""
    if value is None:
        return NONE
    return f"{value * scale(metric):{sign}.{DECIMALS if in_percent(metric) else FINE}f}"


def _costs(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Best epoch, trained parameters, time and memory, as far as they are known."""
    shown = {
        "best epoch": ("best_epoch", lambda value: f"{value:g}"),
        "trained parameters": ("trainable_parameters", lambda value: f"{value:,}"),
        "training time": ("train_seconds", duration),
        "peak memory": ("peak_memory_bytes", size),
    }
    for name, (key, tell) in shown.items():
        yield name, [tell(result[key]) if key in result else NONE for result in results]
