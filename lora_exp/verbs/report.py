"""`report`: from all the runs to a table."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from lora_exp.errors import UserError
from lora_exp.report import published, table
from lora_exp.report.groups import grouped
from lora_exp.report.pivot import COLUMNS, ROWS, Pivot
from lora_exp.report.standing import standing
from lora_exp.report.table import Table
from lora_exp.runs import files
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.selector import Selector, known_key
from lora_exp.verbs.arguments import Filter, Outputs

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
    outputs: Outputs = Path("outputs"),
) -> None:
    """Runs that differ only in their seed, together: mean, standard deviation, median, what is
    significantly best, what is missing; and ours beside the published numbers."""
    asked = _keys("--rows", rows), _keys("--columns", columns)
    if both := {*asked[0]} & {*asked[1]}:
        raise UserError(f"--columns {columns}: {', '.join(both)} is among the rows already.")
    targets = {
        kind: file
        for kind, file in {"csv": csv, "markdown": markdown, "latex": latex, "json": json}.items()
        if file is not None
    }
    for kind, file in targets.items():
        if str(file) != "-" and not file.absolute().parent.is_dir():
            raise UserError(f"--{kind} {file}: there is no folder {file.absolute().parent}.")
    if study is not None:
        published.check(study)
    gc.disable()  # all that is read stays to the end; to look for garbage in it takes its time
    try:
        chosen = _chosen(filters or (), study, outputs)
        if study is not None:
            tables = published.study_tables(study, chosen)
        else:
            pivot = Pivot(grouped(chosen), *asked, metrics=metric.split(",") if metric else ())
            tables = [pivot.table(), *_studies(chosen)]
        if chosen:
            tables[0].notes.extend(standing(chosen))
    finally:
        gc.enable()
    _write(tables, targets)


def _keys(option: str, given: str) -> list[str]:
    """
    Raises:
        UserError: for a key that no run has.
    """
    return [known_key(key.strip(), f"{option} {given}: {key}") for key in given.split(",")]


def _chosen(filters: Sequence[str], study: str | None, outputs: Path) -> list[RunRecord]:
    selector = Selector.parse(filters)
    records = Records(outputs)
    if not records.runs and study is None:
        raise UserError(f"There are no runs in {outputs / 'runs'} (--outputs DIR).")
    chosen = selector.among(records.runs)
    if study is not None:
        return [run for run in chosen if study in run.studies]
    if not chosen:
        raise UserError(f"None of {len(records.runs):,} runs is meant by {selector}.")
    return chosen


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


def _write(tables: Sequence[Table], targets: dict[str, Path]) -> None:
    for kind, file in targets.items():
        content = FORMATS[kind](tables)
        if str(file) == "-":
            sys.stdout.write(content)
            continue
        try:
            files.write(file, content)
        except OSError as error:
            raise UserError(f"--{kind} {file}: cannot be written ({error.strerror}).") from error
        typer.echo(f"{file}: written.", err=True)
    if not targets:
        console = table.terminal()
        for number, one in enumerate(tables):
            if number:
                console.print()
            table.draw(one, console)
