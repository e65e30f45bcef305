"""`cancel`: runs that shall not go on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

from lora_exp.runs import cluster
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.lease import RunBusy
from lora_exp.runs.records import UNFINISHED, Records
from lora_exp.text import count
from lora_exp.verbs.arguments import Filter, Outputs, meant
from lora_exp.verbs.choice import required

CANCELLED, ASKED, ENDED = "cancelled", "asked", "ended"


def cancel(filters: Filter = None, outputs: Outputs = Path("outputs")) -> None:
    """End runs without a result: at once, or those that are being trained once they are saved.

    `retry` lets them go on from there.
    """
    chosen = meant(required(filters, "cancel"), Records(outputs))
    counts = Counter(_cancel(run.folder) for run in chosen)
    if counts[CANCELLED]:
        typer.echo(f"Cancelled: {count(counts[CANCELLED])}.")
    if counts[ASKED]:
        typer.echo(f"Being trained, and saved and ended in some seconds: {count(counts[ASKED])}.")
    if counts[ENDED]:
        typer.echo(f"Ended before, and left as they are: {count(counts[ENDED])}.")
    for grid in {grid.path: grid for run in chosen for grid in run.grids}.values():
        jobs = [entry["job"] for entry in grid.jobs]
        if jobs and not any(map(_goes_on, grid.runs)):
            for job in cluster.cancel_waiting(jobs):
                typer.echo(f"SLURM job {job} of grid {grid.name}: what waited in it is cancelled.")


def _cancel(folder: RunFolder) -> str:
    if folder.status["state"] not in UNFINISHED:
        return ENDED
    try:
        with folder.lock():
            if folder.status["state"] not in UNFINISHED:
                return ENDED
            folder.set_status("cancelled", **folder.progress)
            return CANCELLED
    except RunBusy:
        folder.request_cancel()
        return ASKED


def _goes_on(folder: RunFolder) -> bool:
    return folder.status["state"] in UNFINISHED and not folder.cancel_requested
