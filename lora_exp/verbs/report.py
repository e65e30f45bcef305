"""`report`: from all the runs to a table."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lora_exp.errors import UserError
from lora_exp.report import published, table
from lora_exp.report.groups import grouped
from lora_exp.report.page.content import Content, content
from lora_exp.report.page.document import document
from lora_exp.report.pivot import COLUMNS, ROWS, Pivot
from lora_exp.report.standing import standing
from lora_exp.report.table import Table
from lora_exp.runs import files
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.selector import Selector, known_key
from lora_exp.verbs.arguments import Filter, Outputs, meant

FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "csv": table.as_csv,
    "markdown": table.markdown,
    "latex": table.latex,
    "json": table.as_json,
}


def report(
    filters: Filter = None,
    rows: Annotated[
        str, typer.Option(help="Keys, as in a filter, of which each combination is a row.")
    ] = ",".join(ROWS),
    columns: Annotated[str, typer.Option(help="The same for columns.")] = ",".join(COLUMNS),
    metric: Annotated[
        str | None, typer.Option(help="NAME,...: a column for each; otherwise the task's first.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Only the published tables of a study, with ours in them.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="- is the output.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="With booktabs.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page with charts; it needs no network.")
    ] = None,
    watch: Annotated[
        bool, typer.Option(help="Serve the page of --html here, and follow the runs until Ctrl-C.")
    ] = False,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Runs that differ only in their seed, together: mean, standard deviation, median, what is
    significantly best, what is missing; and ours beside the published numbers."""
    keys = _keys("--rows", rows), _keys("--columns", columns)
    if both := {*keys[0]} & {*keys[1]}:
        raise UserError(f"--columns {columns}: {', '.join(both)} is among the rows already.")
    targets = {
        kind: file
        for kind, file in {
            "csv": csv,
            "markdown": markdown,
            "latex": latex,
            "json": json,
            "html": html,
        }.items()
        if file is not None
    }
    for kind, file in targets.items():
        if str(file) != "-" and not file.absolute().parent.is_dir():
            raise UserError(f"--{kind} {file}: there is no folder {file.absolute().parent}.")
        if file.is_dir():
            raise UserError(f"--{kind} {file}: is a folder; name a file.")
    if watch and (html is None or str(html) == "-"):
        raise UserError("--watch serves the page of --html FILE: give both.")
    if study is not None:
        published.check(study)
    asked = Asked(filters or (), *keys, metric.split(",") if metric else (), study, outputs)
    answer = asked.answer(page=html is not None)
    _write(answer, targets)
    if watch:
        assert answer.page is not None
        assert html is not None
        _follow(asked, answer.page, html)


@dataclass(frozen=True)
class Answer:
    """What there is to tell of the runs as they stand."""

    tables: list[Table]
    page: Content | None


@dataclass(frozen=True)
class Asked:
    """What the user wants to know."""

    filters: Sequence[str]
    rows: Sequence[str]
    columns: Sequence[str]
    metrics: Sequence[str]
    study: str | None
    outputs: Path

    def answer(self, *, page: bool) -> Answer:
        """Read the runs.

        Args:
            page: with what the page shows.
        """
        gc.disable()  # all that is read stays to the end; to look for garbage in it takes its time
        try:
            chosen = _chosen(self.filters, self.study, self.outputs)
            pivot = Pivot(grouped(chosen), self.rows, self.columns, self.metrics)
            if self.study is not None:
                own, tables = [], published.study_tables(self.study, chosen)
            else:
                own, tables = [pivot.table()], _studies(chosen)
            told = standing(chosen) if chosen else []
            shown = content(self._title, pivot, tables, told) if page else None
            (own or tables)[0].notes.extend(told)
            return Answer([*own, *tables], shown)
        finally:
            gc.enable()

    @property
    def _title(self) -> str:
        if self.study is not None:
            return f"Study {self.study}"
        narrowed = f"Runs with {' '.join(self.filters)}" if self.filters else "All runs"
        return f"{narrowed} in {self.outputs}"


def _follow(asked: Asked, page: Content, file: Path) -> None:
    """Serve the page until Ctrl-C, and leave it in its file as it was then."""
    from lora_exp.report.page.server import follow, serving

    def look() -> Content:
        answer = asked.answer(page=True)
        assert answer.page is not None
        return answer.page

    with serving(page) as server:
        typer.echo(f"{server.address} follows the runs. Ctrl-C ends it, and leaves {file}.")
        try:
            follow(look, server)
        except KeyboardInterrupt:
            _write_file("html", file, document(server.shown[0]))


def _keys(option: str, given: str) -> list[str]:
    """
    Raises:
        UserError: for a key that no run has.
    """
    return [known_key(key.strip(), f"{option} {given}: {key}") for key in given.split(",")]


def _chosen(filters: Sequence[str], study: str | None, outputs: Path) -> list[RunRecord]:
    selector, records = Selector.parse(filters), Records(outputs)
    if study is None:
        return meant(selector, records)
    return [run for run in selector.among(records.runs) if study in run.studies]


def _studies(runs: Sequence[RunRecord]) -> list[Table]:
    """Of each study of which there are runs."""
    of: dict[str, list[RunRecord]] = {}
    for run in runs:
        for name in dict.fromkeys(run.studies):
            of.setdefault(name, []).append(run)
    return [
        table
        for name, members in of.items()
        if name in published.studies()
        for table in published.study_tables(name, members)
    ]


def _write(answer: Answer, targets: dict[str, Path]) -> None:
    for kind, file in targets.items():
        page = answer.page if kind == "html" else None
        text = FORMATS[kind](answer.tables) if page is None else document(page)
        if str(file) == "-":
            sys.stdout.write(text)
        else:
            _write_file(kind, file, text)
    if not targets:
        console = table.terminal()
        for number, one in enumerate(answer.tables):
            if number:
                console.print()
            table.draw(one, console)


def _write_file(kind: str, file: Path, text: str) -> None:
    try:
        files.write(file, text)
    except OSError as error:
        raise UserError(f"--{kind} {file}: cannot be written ({error.strerror}).") from error
    typer.echo(f"{file}: written.", err=True)
