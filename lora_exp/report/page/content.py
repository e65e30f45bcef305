"""What the report page shows, as one tree of dataclasses that becomes its JSON."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import islice, zip_longest
from typing import Any

from lora_exp.errors import UserError
from lora_exp.report import described
from lora_exp.report.curves import Curve, curves
from lora_exp.report.groups import Group, Summary
from lora_exp.report.pivot import Pivot, Place
from lora_exp.report.table import Table
from lora_exp.report.units import DECIMALS, lower_is_better, scale
from lora_exp.runs.records import LOST, RunRecord
from lora_exp.runs.selector import STATES, text_of
from lora_exp.text import count

DETAILED = 500
"""Most runs of which config, origin, log and texts are in the page."""
POINTS = 60
"""Most points of a curve."""
ALL_POINTS = 40_000
"""About as many points all curves of a page have."""
FEWEST_POINTS = 8
ROOM = 3_000_000
"""Characters that their logs and texts have together, about."""
LOG_BYTES = 2000
"""Of the end of a log."""
TEXTS = 6
"""Texts of a run that are shown."""
TEXT_LENGTH = 600
"""Characters of a text that are shown."""
REFERENCES = 3
DIGITS = 6
"""Significant ones of a number that is drawn."""
LABEL_LENGTH = 200
"""Characters of a value in the table."""


@dataclass(frozen=True)
class Metric:
    """How a metric is told."""

    scale: float
    decimals: int
    lower_is_better: bool


@dataclass(frozen=True)
class Row:
    """A group measured by one metric: a line of the page's table."""

    group: int
    labels: list[Any]
    """The values of the content's keys."""
    task: str
    metric: str | None
    summary: Summary | None
    best: bool
    """Significantly, by the rule of `report`."""


@dataclass(frozen=True)
class GroupShown:
    """Runs that differ in their seed alone."""

    name: str
    series: str
    """Method and placement: the points of one line in the charts."""
    rank: float | None
    learning_rate: float | None
    parameters: float | None
    """Trained ones."""
    seconds: float | None
    """Of training, the mean of its runs."""
    memory: float | None
    """Bytes at the peak, the most of its runs."""
    unfinished: list[str]
    runs: list[int]
    curves: list[Curve]


@dataclass
class RunShown:
    """One run; what makes it long is there for some runs only."""

    name: str
    seed: Any
    state: str
    why: str
    step: int | None
    total_steps: int | None
    epoch: float | None
    """The selected one; of a run that is not done, where it stands."""
    seconds: float | None
    metrics: dict[str, float | None]
    details: Details | None = None


@dataclass
class Details:
    """What is written of a run."""

    config: dict[str, str]
    """Where it is not that of `Content.config`."""
    origin: dict[str, str]
    """Likewise."""
    log: str
    cut: bool
    """The log is longer."""
    texts: list[tuple[int, str]]
    """Number among `Content.sources`, and what the run wrote."""
    further: int
    """Texts that are not shown."""


@dataclass(frozen=True)
class Source:
    """What a language model was given to write about."""

    source: str
    references: list[str]


@dataclass
class TableShown:
    """A table of `report`, as it stands there."""

    title: str
    header: list[str]
    rows: list[list[tuple[str, bool]]]
    """Texts, and whether they are bold."""
    notes: list[str]
    labels: int
    blocks: list[int]


@dataclass
class Content:
    """All that is in a page."""

    title: str
    written: str
    """UTC."""
    states: dict[str, int]
    keys: list[str]
    metrics: dict[str, Metric]
    rows: list[Row]
    groups: list[GroupShown]
    runs: list[RunShown]
    tables: list[TableShown]
    notes: list[str]
    standing: list[str]
    """What has no result, and why."""
    left_out: str | None
    config: dict[str, str] = field(default_factory=dict)
    """What most runs have."""
    origin: dict[str, str] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def json(self) -> str:
        """JSON in ASCII in which no tag of HTML can begin or end."""
        text = json.dumps(_plain(self), allow_nan=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content(
    title: str, pivot: Pivot, tables: Sequence[Table], standing: Sequence[str] = ()
) -> Content:
    """The page of some groups.

    Args:
        title: what it is of.
        pivot: the groups, their keys and metrics.
        tables: those of `report` that the page has as well.
        standing: what has no result, and why.
    """
    runs = [run for group in pivot.groups for run in group.runs]
    numbers = {run.name: number for number, run in enumerate(runs)}
    at = {id(group): number for number, group in enumerate(pivot.groups)}
    most = max(FEWEST_POINTS, min(POINTS, ALL_POINTS // (3 * len(at) or 1)))
    counts = Counter(run.state for run in runs)
    best = pivot.best()
    several = _tasks_with_models(pivot.groups)
    rows = [_row(place, at[id(place.group)], id(place) in best) for place in pivot.ordered()]
    names = {name for group in pivot.groups for name in (*group.metrics, group.selecting, "loss")}
    shown = Content(
        title=title,
        written=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        states={state: counts[state] for state in STATES if counts[state]},
        keys=[*pivot.columns, *pivot.rows],
        metrics={
            name: Metric(scale(name), DECIMALS, lower_is_better(name))
            for name in sorted(name for name in names if name is not None)
        },
        rows=rows,
        groups=[_group(group, numbers, most, several) for group in pivot.groups],
        runs=[_run(run) for run in runs],
        tables=[_table(table) for table in tables],
        notes=pivot.notes(),
        standing=[*standing],
        left_out=None,
    )
    _add_details(shown, pivot.groups, numbers)
    return shown


def _plain(node: Any) -> Any:
    """As JSON has it: numbers with the digits that are drawn, null for one that is not finite."""
    if isinstance(node, float):
        return float(f"{node:.{DIGITS}g}") if math.isfinite(node) else None
    if isinstance(node, list | tuple):
        return [_plain(one) for one in node]
    if is_dataclass(node):
        node = vars(node)
    return {key: _plain(one) for key, one in node.items()} if isinstance(node, dict) else node


# -- groups and runs -------------------------------------------------------------------------------


def _row(place: Place, group: int, best: bool) -> Row:
    labels = [
        value[:LABEL_LENGTH] if isinstance(value, str) else value
        for value in (*place.column, *place.row)
    ]
    task = text_of(place.group.value_of("task"))
    return Row(group, labels, task, place.metric, place.summary, best)


def _tasks_with_models(groups: Sequence[Group]) -> set[str]:
    """The tasks that more than one model was trained for."""
    pairs = {(group.value_of("task"), group.value_of("model")) for group in groups}
    counts = Counter(task for task, _ in pairs)
    return {task for task, number in counts.items() if number > 1}


def _group(
    group: Group, numbers: Mapping[str, int], most: int, several_models: set[str]
) -> GroupShown:
    words = [group.value_of("method"), group.value_of("placement")]
    if group.value_of("task") in several_models:
        words.append(group.value_of("model"))
    seconds = group.of_results("train_seconds")
    return GroupShown(
        name=group.name or group.runs[0].name,
        series=" ".join(text_of(word) for word in words if word not in ("", None)),
        rank=_number(group.value_of("lora.r")),
        learning_rate=_number(group.value_of("train.lr")),
        parameters=next(iter(group.of_results("trainable_parameters")), None),
        seconds=sum(seconds) / len(seconds) if seconds else None,
        memory=max(group.of_results("peak_memory_bytes"), default=None),
        unfinished=group.unfinished,
        runs=[numbers[run.name] for run in group.runs],
        curves=curves(group, most),
    )


def _run(run: RunRecord) -> RunShown:
    result = run.result if run.state == "done" else None
    status = run.status
    metrics = (result or {}).get("metrics") or {}
    return RunShown(
        name=run.name,
        seed=run.config.get("seed"),
        state=run.state,
        why=run.why[:TEXT_LENGTH],
        step=status.get("step"),
        total_steps=status.get("total_steps"),
        epoch=result.get("best_epoch") if result else status.get("epoch"),
        seconds=result.get("train_seconds") if result else status.get("seconds"),
        metrics=metrics,
    )


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _table(table: Table) -> TableShown:
    rows = [[(cell.text, cell.bold) for cell in row] for row in table.rows]
    return TableShown(
        table.title, table.header, rows, table.notes, table.labels, sorted(table.blocks)
    )


# -- details ---------------------------------------------------------------------------------------


def _add_details(shown: Content, groups: Sequence[Group], numbers: Mapping[str, int]) -> None:
    """Of as many runs as the page has room for; what is left out is said."""
    configs, origins, found = [], [], []
    known: dict[str, int] = {}
    room = ROOM
    for run in _chosen(groups):
        if room <= 0:
            break
        first = len(shown.sources)
        try:
            texts = _texts(run, shown.sources, known)
        except UserError as error:
            texts = [], 0
            shown.standing.append(f"{run.name} has no texts to show: {error}")
        details = Details({}, {}, *_log(run), *texts)
        room -= len(json.dumps([vars(details), *map(vars, shown.sources[first:])]))
        configs.append(described.configured(run))
        origins.append(_origin(run))
        found.append((run, details))
    shown.config, shown.origin = _usual(configs), _usual(origins)
    for (run, details), config, origin in zip(found, configs, origins, strict=True):
        details.config = _unlike(config, shown.config)
        details.origin = _unlike(origin, shown.origin)
        shown.runs[numbers[run.name]].details = details
    if len(found) < len(numbers):
        shown.left_out = (
            f"Config, origin, log and texts are here for {len(found):,} of {count(len(numbers))}: "
            "those that failed or go on, then the first seeds of each group. A FILTER narrows the "
            "page; show RUN and logs RUN tell of any run."
        )


def _chosen(groups: Sequence[Group]) -> list[RunRecord]:
    """Those of which one wants to know why they have no result come first, then seed by seed."""
    urgent = ("failed", LOST, "running")
    turns = zip_longest(*(group.runs for group in groups))
    runs = [run for turn in turns for run in turn if run is not None]
    return sorted(runs, key=lambda run: run.state not in urgent)[:DETAILED]


def _origin(run: RunRecord) -> dict[str, str]:
    written = run.origin
    return {
        "folder": str(run.folder.path),
        "command": text_of(written.get("command", "")),
        "created": text_of(written.get("created", "")),
        "grid": ", ".join(grid.name for grid in run.grids),
    } | described.origin(run)


def _usual(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of each key the value that most have."""
    values: dict[str, Counter[str]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            values.setdefault(key, Counter())[value] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in values.items()}


def _unlike(mapping: Mapping[str, str], usual: Mapping[str, str]) -> dict[str, str]:
    """What differs from the usual; "" for a key that is missing."""
    return {key: mapping.get(key, "") for key in usual if mapping.get(key, "") != usual[key]}


def _log(run: RunRecord) -> tuple[str, bool]:
    """Its last whole lines, and whether there are more."""
    try:
        with run.folder.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "", False
    if size <= LOG_BYTES:
        return text, False
    _, _, whole = text.partition("\n")
    return whole or text, True


def _texts(
    run: RunRecord, sources: list[Source], known: dict[str, int]
) -> tuple[list[tuple[int, str]], int]:
    """Its first texts, and how many more there are; sources that are new are added."""
    lines = run.folder.texts()
    found = []
    for line in islice(lines, TEXTS):
        number = known.setdefault(line["source"], len(sources))
        if number == len(sources):
            references = [_short(one) for one in line["references"][:REFERENCES]]
            sources.append(Source(_short(line["source"]), references))
        found.append((number, _short(line["output"])))
    return found, sum(1 for _ in lines)


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 3] + "..."
