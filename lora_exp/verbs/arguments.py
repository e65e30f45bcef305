"""What several verbs take, and the runs that are meant by it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_exp.errors import UserError
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.selector import Selector
from lora_exp.text import count

Outputs = Annotated[Path, typer.Option(help="The folder that holds the runs.")]


def run_names(context: typer.Context, incomplete: str) -> list[str]:
    """For completion: the runs in the folder that is given, or in `outputs`."""
    from lora_exp.runs.store import all_runs

    outputs = Path(context.params.get("outputs") or "outputs")
    return [run.name for run in all_runs(outputs) if run.name.startswith(incomplete)]


Run = Annotated[
    str,
    typer.Argument(
        help="A run's name, its signature, or the beginning of one.", autocompletion=run_names
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the pre-trained model, if it is elsewhere now."),
]
Filter = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILTER]...",
        help="task=rte state=failed,lost 'lora.r>4' grid=NAME model=roberta*: all must hold. Keys: "
        "those of the config, and task, model, placement, state, grid, study, group, signature, "
        "name. Operators: = != > < >= <=, quoted for the shell.",
    ),
]


def meant(selector: Selector, records: Records) -> list[RunRecord]:
    """The runs that a filter means, at least one.

    Raises:
        UserError: if there is none.
    """
    if not records.runs:
        raise UserError(f"There are no runs in {records.outputs / 'runs'} (--outputs DIR).")
    chosen = selector.among(records.runs)
    if not chosen:
        raise UserError(f"None of {count(len(records.runs))} is meant by {selector}.")
    return chosen
