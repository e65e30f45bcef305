"""Ours beside the published numbers: `report --study NAME`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lora_exp.errors import UserError, nearest
from lora_exp.report.groups import Group, Summary, grouped
from lora_exp.report.pivot import NONE, telling
from lora_exp.report.table import JOINED, MINUS, Cell, Table
from lora_exp.report.units import millions
from lora_exp.runs.records import RunRecord
from lora_exp.runs.selector import Selector, text_of, value_of
from lora_exp.runs.values import load

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Column:
    """What a published number measures, and its counterpart in result.json."""

    task: str
    metric: str
    scale: float
    decimals: int


@dataclass(frozen=True)
class Number:
    """A published one."""

    mean: float
    pm: float | None = None
    """What follows the plus-minus sign; None where there is none."""


@dataclass(frozen=True)
class Row:
    """A published row, and the filter of the runs that it is compared with."""

    model: str
    method: str
    parameters: str
    scores: Mapping[str, Number]
    runs: str | None = None
    prior_work: bool = False
    restricted: bool = False

    @property
    def name(self) -> str:
        """The method, and where its numbers come from."""
        marks = ["prior work"] * self.prior_work + ["restricted"] * self.restricted
        return self.method + (f" ({', '.join(marks)})" if marks else "")


@dataclass(frozen=True)
class Published:
    """A published table."""

    title: str
    source: str
    statistic: str
    """What a number is of the seeds: `median` or `mean`."""
    seeds: int
    columns: Mapping[str, Column]
    average: Sequence[str]
    """The columns that the average is of; none: there is no average."""
    rows: Sequence[Row]


@dataclass(frozen=True)
class Study:
    """The part of the published tables that one command reproduces."""

    models: Sequence[str]
    tables: Sequence[Published]


@cache
def studies() -> dict[str, Study]:
    """By name, as published.yaml has them."""
    content = load(FILE.read_text(encoding="utf-8"))
    tables = {name: _table(values) for name, values in content["tables"].items()}
    return {
        name: Study(values["models"], [tables[table] for table in values["tables"]])
        for name, values in content["studies"].items()
    }


def check(name: str) -> None:
    """
    Raises:
        UserError: if there is no such study.
    """
    if name not in studies():
        raise UserError(f"--study {name}: {nearest(name, studies(), kind='studies')}")


def _table(values: dict[str, Any]) -> Published:
    columns = {name: Column(**column) for name, column in values["columns"].items()}
    rows = [
        Row(**row | {"scores": {name: Number(**one) for name, one in row["scores"].items()}})
        for row in values["rows"]
    ]
    whole: dict[str, Any] = {"average": []} | values | {"columns": columns, "rows": rows}
    return Published(**whole)


def study_tables(name: str, runs: Sequence[RunRecord]) -> list[Table]:
    """The tables of a study.

    Args:
        name: of the study.
        runs: ours, whatever they are of; those that a row means are found among them.
    """
    study = studies()[name]
    return [_Layout(name, study.models, published, runs).table() for published in study.tables]


@dataclass(frozen=True)
class _Ours:
    """A group beside a published number."""

    group: Group
    column: Column
    statistic: str

    @property
    def summary(self) -> Summary | None:
        return self.group.summary(self.column.metric)

    @property
    def value(self) -> float | None:
        """On the published scale, unrounded."""
        summary = self.summary
        if summary is None:
            return None
        return (summary.mean if self.statistic == "mean" else summary.median) * self.column.scale

    @property
    def deviation(self) -> float | None:
        summary = self.summary
        if summary is None or summary.deviation is None:
            return None
        return summary.deviation * self.column.scale

    def difference(self, theirs: Number) -> float | None:
        """Both rounded as published."""
        if self.value is None:
            return None
        return round(round(self.value, self.column.decimals) - theirs.mean, self.column.decimals)

    def within(self, theirs: Number) -> tuple[bool | None, bool | None]:
        """Whether the difference is at most their spread, and ours; None where it is not known."""
        difference = self.difference(theirs)
        if difference is None:
            return None, None
        places = self.column.decimals
        spreads = (theirs.pm, None if self.deviation is None else round(self.deviation, places))
        inside, own = (None if one is None else abs(difference) <= one + 1e-9 for one in spreads)
        return inside, own


class _Layout:
    """One published table with ours in it."""

    def __init__(
        self, study: str, models: Sequence[str], published: Published, runs: Sequence[RunRecord]
    ) -> None:
        self.study, self.published, self.runs = study, published, runs
        self.rows = [row for row in published.rows if row.model in models]
        self.columns = published.columns
        self.averaged = bool(published.average)
        self.used: set[str] = set()
        self.remarks: list[str] = []

    def table(self) -> Table:
        body: list[list[Cell]] = []
        records: list[dict[str, Any]] = []
        blocks = set()
        for row in self.rows:
            lines, cells = self._lines(row), list(self._theirs(row))
            body.append([Cell(text) for text in (row.name, row.parameters, "theirs", *cells)])
            for number, ours in enumerate(lines):
                label = "ours" if number == 0 else f"ours {number + 1}"
                body.append(
                    [Cell(text) for text in ("", _parameters(ours), label, *self._own(ours))]
                )
                body.append([Cell(text) for text in ("", "", "difference", *self._gap(row, ours))])
                records += self._records(row, ours, label)
            if not lines:
                records += self._records(row, {}, "ours")
            blocks.add(len(body) - 1)
        header = ["method", "parameters", "", *(name.replace("_", " ") for name in self.columns)]
        models = ", ".join(dict.fromkeys(row.model for row in self.rows))
        return Table(
            title=f"{self.study}: {models}, {self.published.title} ({self.published.source})",
            header=header + ["average"] * self.averaged,
            rows=body,
            notes=self._notes(),
            records=records,
            labels=3,
            blocks=blocks,
        )

    def _lines(self, row: Row) -> list[dict[str, _Ours]]:
        """Ours by column; where several groups fit a cell, each has a line of its own."""
        if row.runs is None:
            return []
        lines: list[dict[str, _Ours]] = []
        selector = Selector.parse([row.runs, f"model={row.model.split('/')[-1]}"])
        runs = [run for run in self.runs if selector.matches(run)]
        tasks = {column.task for column in self.columns.values()}
        of: dict[str, list[Group]] = {task: [] for task in tasks}
        for group in grouped(run for run in runs if value_of(run, "task") in tasks):
            of[group.value_of("task")].append(group)
            self.used.update(run.name for run in group.runs)
        for name, column in self.columns.items():
            groups = sorted(of[column.task], key=lambda group: -len(group.results))
            for number, group in enumerate(groups):
                if number == len(lines):
                    lines.append({})
                lines[number][name] = _Ours(group, column, self.published.statistic)
            if len(groups) > 1:
                self._remark(row, name, groups)
        return lines

    def _remark(self, row: Row, name: str, groups: Sequence[Group]) -> None:
        keys = telling(groups, [])
        told = [
            f"ours{f' {number}' if number > 1 else ''} has "
            + ", ".join(f"{key}={text_of(group.value_of(key))}" for key in keys)
            for number, group in enumerate(groups, start=1)
        ]
        self.remarks.append(f"{row.method}, {name}: {'; '.join(told)}.")

    def _theirs(self, row: Row) -> Iterator[str]:
        for name, column in self.columns.items():
            number = row.scores.get(name)
            if number is None:
                yield NONE
                continue
            pm = "" if number.pm is None else f" ± {number.pm:.{column.decimals}f}"
            yield _joined(f"{number.mean:.{column.decimals}f}{pm}")
        if self.averaged:
            yield f"{row.scores['average'].mean}"

    def _own(self, ours: Mapping[str, _Ours]) -> Iterator[str]:
        for name, column in self.columns.items():
            yield self._cell(ours[name], column.decimals) if name in ours else NONE
        if self.averaged:
            average = self._average(ours)
            yield NONE if average is None else f"{average:.2f}"

    def _cell(self, ours: _Ours, decimals: int) -> str:
        parts = []
        summary = ours.summary
        if summary is not None:
            spread = "" if ours.deviation is None else f" ± {ours.deviation:.{decimals}f}"
            parts.append(_joined(f"{ours.value:.{decimals}f}{spread}"))
            if summary.seeds != self.published.seeds:
                parts.append(f"({summary.seeds}/{self.published.seeds})")
        elif ours.group.results:
            parts.append("not measured")
        return " ".join([*parts, *map(_joined, ours.group.unfinished)])

    def _gap(self, row: Row, ours: Mapping[str, _Ours]) -> Iterator[str]:
        for name, column in self.columns.items():
            number = row.scores.get(name)
            difference = ours[name].difference(number) if name in ours and number else None
            if difference is None or number is None:
                yield ""
                continue
            word = _word(*ours[name].within(number))
            yield _joined(f"{_signed(difference, column.decimals)} {word}")
        if self.averaged:
            average = self._average(ours)
            gap = None if average is None else round(average, 2) - row.scores["average"].mean
            yield "" if gap is None else _signed(gap, 2)

    def _average(self, ours: Mapping[str, _Ours]) -> float | None:
        """Over the published columns, if all are there."""
        values = [ours[name].value for name in self.published.average if name in ours]
        there = [value for value in values if value is not None]
        wanted = len(self.published.average)
        return sum(there) / wanted if wanted and len(there) == wanted else None

    def _records(self, row: Row, ours: Mapping[str, _Ours], label: str) -> Iterator[dict[str, Any]]:
        for name, column in self.columns.items():
            number, own = row.scores.get(name), ours.get(name)
            if number is None and own is None:
                continue
            within = own.within(number) if own and number else (None, None)
            summary = own and own.summary
            yield {
                "study": self.study,
                "source": self.published.source,
                "model": row.model,
                "method": row.name,
                "parameters": row.parameters,
                "column": name,
                "task": column.task,
                "metric": column.metric,
                "statistic": self.published.statistic,
                "theirs": number and number.mean,
                "theirs_pm": number and number.pm,
                "line": label,
                "ours": own and own.value,
                "ours_standard_deviation": own and own.deviation,
                "seeds": sorted(own.group.values(column.metric)) if own and summary else [],
                "seeds_published": self.published.seeds,
                "difference": own.difference(number) if own and number else None,
                "within_theirs": within[0],
                "within_ours": within[1],
                "unfinished": own.group.unfinished if own else [],
                "group": own and own.group.name,
            }

    def _notes(self) -> list[str]:
        published = self.published
        notes = [
            f"{published.statistic.capitalize()} of the seeds, of {published.seeds} unless it says "
            "how many; ± standard deviation. Theirs as published.",
            "Difference: of the numbers as they are rounded, and which spread is at least as large "
            "(both, theirs, ours or neither); with ? where one of the spreads is not known.",
        ]
        if self.averaged:
            notes.append(f"Average: of {', '.join(published.average)}.")
        left = sum(run.name not in self.used for run in self.runs)
        if left:
            notes.append(f"{left:,} of {len(self.runs):,} runs have no published counterpart here.")
        if not self.runs:
            notes.append(f"Nothing is trained yet: python -m lora_exp study={self.study}")
        return notes + self.remarks


def _word(theirs: bool | None, ours: bool | None) -> str:
    """Which spread covers a difference."""
    word = {
        (True, True): "both",
        (True, False): "theirs",
        (False, True): "ours",
    }.get((bool(theirs), bool(ours)), "neither")
    return word + ("?" if theirs is None or ours is None else "")


def _signed(difference: float, decimals: int) -> str:
    return f"{difference + 0.0:+.{decimals}f}".replace("-", MINUS)


def _parameters(ours: Mapping[str, _Ours]) -> str:
    """Trained ones; several where heads have other sizes."""
    counts = (one.group.of_results("trainable_parameters") for one in ours.values())
    return " ".join(sorted({millions(count) for some in counts for count in some}))


def _joined(text: str) -> str:
    """Never broken into lines."""
    return text.replace(" ", JOINED)
