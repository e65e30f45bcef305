"""`compare`: two runs or more, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_exp.errors import UserError
from lora_exp.report.comparison import Comparison
from lora_exp.report.table import draw, terminal
from lora_exp.runs.records import Records
from lora_exp.runs.store import find_run
from lora_exp.verbs.arguments import Outputs, run_names

MOST = 6
"""Runs that have room beside each other."""


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Names, signatures, or the beginnings of them; the first is compared "
            "with each of the others.",
            autocompletion=run_names,
        ),
    ],
    outputs: Outputs = Path("outputs"),
) -> None:
    """What differs between runs, how they learned, whether their metrics differ significantly, and
    which examples they answer differently."""
    found = [find_run(outputs, run) for run in runs]
    if len({folder.path for folder in found}) < len(found) or not 1 < len(found) <= MOST:
        raise UserError(f"compare {' '.join(runs)}: name two to {MOST} different runs.")
    console = terminal()
    stores = {folder.path.parent: Records(folder.path.parent.parent) for folder in found}
    records = [stores[folder.path.parent].of(folder) for folder in found]
    siblings = [run for store in stores.values() for run in store.runs]
    for table in Comparison(records, siblings).tables():
        draw(table, console)
        console.print()
