"""What several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Outputs = Annotated[Path, typer.Option(help="The folder that holds the runs.")]
Run = Annotated[str, typer.Argument(help="A run's name, its signature, or the beginning of one.")]
Filter = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILTER]...",
        help="task=rte state=failed,lost 'lora.r>4' grid=NAME model=roberta*: all must hold. Keys: "
        "those of the config, and task, model, placement, state, grid, study, group, signature, "
        "name. Operators: = != > < >= <=, quoted for the shell.",
    ),
]
