"""`dashboard`: a workspace and a report at W&B."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from unicodedata import category

import typer

from lora_exp import console
from lora_exp.errors import RunFailed, UserError, nearest, one_line
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.selector import Selector
from lora_exp.verbs.arguments import Outputs, meant

TITLE_LENGTH = 128
"""W&B takes no longer ones."""


def dashboard(
    which: Annotated[
        list[str],
        typer.Argument(metavar="STUDY|FILTER...", help="A study, a grid, or conditions: task=rte."),
    ],
    project: Annotated[str | None, typer.Option(help="Of W&B; otherwise that of the runs.")] = None,
    entity: Annotated[str | None, typer.Option(help="W&B user or team.")] = None,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Save a W&B workspace and a report of runs that W&B has: curves by group, the metric against
    rank and parameters, parallel coordinates, tables. The same command renews them."""
    given = " ".join(which)
    runs, tag = _chosen(which, outputs)
    if not any(run.result for run in runs):
        raise UserError(f"dashboard {given}: none of these runs is done yet.")
    if find_spec("wandb_workspaces") is None:
        raise UserError(
            "dashboard: wandb-workspaces is not installed: pip install 'lora-exp[dashboard]'"
        )
    from lora_exp.track.dashboard import Dashboard
    from lora_exp.track.views import save
    from lora_exp.track.wandb import check_login, default_entity

    check_login("call report, which needs no W&B.")
    own = runs[0].folder.config.tracker
    try:
        entity = entity or own.entity or default_entity()
        made = Dashboard(_title(given), entity, project or own.project, runs, tag)
        workspace, report = save(made, outputs / "wandb" / "dashboards")
    except Exception as error:
        raise RunFailed(f"dashboard: W&B does not take it ({one_line(error)}).") from error
    typer.echo(f"workspace  {workspace}\nreport     {report}")
    studies = {study for run in runs for study in run.studies}
    words = f"sync {'study' if tag in studies else 'grid'}={tag}" if tag else f"sync {given}"
    typer.echo(f"Runs that are missing there are sent by: {console.verb(words, outputs)}")


def _title(given: str) -> str:
    """Without the characters that W&B takes for emojis, = and < among them."""
    plain = ("" if category(letter)[0] == "S" else letter for letter in re.sub("=", " ", given))
    return f"lora_exp {''.join(plain)}"[:TITLE_LENGTH]


def _chosen(which: Sequence[str], outputs: Path) -> tuple[list[RunRecord], str | None]:
    """The runs, and the tag that they have at W&B, if they are all the runs of a study or grid."""
    name, records = which[0], Records(outputs)
    if len(which) > 1 or set(name) & set("=<>"):
        return meant(Selector.parse(which), records), None
    runs = meant(Selector(()), records)
    of = {run.name: {*run.studies, *(grid.name for grid in run.grids)} for run in runs}
    chosen = [run for run in runs if name in of[run.name]]
    if not chosen:
        known = {one for names in of.values() for one in names}
        hint = nearest(name, known, kind="runs of") if known else "No run is of one."
        raise UserError(f"dashboard {name}: there is no such study or grid here. {hint}")
    return chosen, name
