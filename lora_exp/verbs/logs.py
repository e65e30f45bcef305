"""`logs`: what a run has to say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lora_exp.runs.bounds import printable
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.records import Records
from lora_exp.runs.store import find_run
from lora_exp.verbs.arguments import Outputs, Run

LOOK_SECONDS = 0.5
"""Between two looks for further lines."""
DOUBT_SECONDS = 20.0
"""Between two looks whether anything trains the run at all."""


def logs(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends.")
    ] = False,
    outputs: Outputs = Path("outputs"),
) -> None:
    """A run's log."""
    folder = find_run(outputs, run)
    if follow:
        _follow(folder)
    elif folder.log.exists():
        typer.echo(printable(folder.log.read_text(encoding="utf-8", errors="replace").rstrip()))
    else:
        typer.echo(f"{folder.name} is {folder.status['state']}, and has no log yet.", err=True)


def _follow(folder: RunFolder) -> None:
    place, doubt = 0, time.monotonic()
    while True:
        state = folder.status["state"]  # before the log is read: its last lines are there by then
        if state in ("running", "queued") and time.monotonic() >= doubt:
            state, doubt = _standing(folder), time.monotonic() + DOUBT_SECONDS
        if folder.log.exists():
            with folder.log.open("rb") as file:
                if file.seek(0, 2) < place:  # it is another one: the run was trained again
                    place = 0
                file.seek(place)
                new = file.read()
            place += len(new)
            typer.echo(printable(new.decode("utf-8", "replace")), nl=False)
        if state not in ("running", "queued"):
            typer.echo(f"{folder.name} is {state}.", err=True)
            return
        time.sleep(LOOK_SECONDS)


def _standing(folder: RunFolder) -> str:
    """Its state, or `lost` if nothing trains it any more, or would begin to."""
    return Records(folder.path.parent.parent).of(folder).state
