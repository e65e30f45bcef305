"""`sync`: runs to a tracker, from their folders."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lora_exp.errors import RunFailed, UserError, nearest, one_line
from lora_exp.runs.checks import TRACKERS, WANDB_MODES, how_to_install, is_installed
from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.selector import Selector
from lora_exp.text import count
from lora_exp.verbs.arguments import Filter, Outputs, meant


def sync(
    filters: Filter = None,
    to: Annotated[str, typer.Option(help="wandb, tensorboard, trackio or mlflow.")] = "wandb",
    mode: Annotated[
        str, typer.Option(help="W&B: online; or offline, which writes W&B's files.")
    ] = "online",
    project: Annotated[
        str | None, typer.Option(help="Of W&B and Trackio, MLflow's experiment.")
    ] = None,
    entity: Annotated[str | None, typer.Option(help="W&B user or team.")] = None,
    artifact: Annotated[
        bool, typer.Option("--artifact", help="The adapters as well, to W&B or MLflow.")
    ] = False,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Send runs to a tracker from their folders, whoever watched them while they trained.

    What a tracker has is not sent again; what was sent is noted in OUTPUTS/TRACKER/sent, which may
    be removed. Project, entity and tags are those of the run's config unless given.
    """
    if to not in TRACKERS:
        raise UserError(f"--to {to}: {nearest(to, TRACKERS, kind='trackers')}")
    if not is_installed(to):
        raise UserError(f"--to {to}: {how_to_install(to)}")
    if mode not in WANDB_MODES[:2]:
        raise UserError(f"--mode {mode}: must be one of {', '.join(WANDB_MODES[:2])}.")
    runs = meant(Selector.parse(filters or ()), Records(outputs))
    if to == "wandb" and mode == "online":
        from lora_exp.track.wandb import check_login

        check_login("write its files here: --mode offline.")
    done: Counter[str] = Counter()
    for run in runs:
        try:
            own = run.folder.config.tracker
        except UserError as error:
            outcome, told = "left alone", str(error)
        else:
            settings = replace(
                own,
                mode=mode,
                project=project or own.project,
                entity=entity or own.entity,
                artifact=artifact or own.artifact,
            )
            outcome, told = _send(run, to, settings)
        done[outcome] += 1
        typer.echo(f"{run.name}  {told}")
    typer.echo(f"{count(len(runs))}: {', '.join(f'{n} {what}' for what, n in done.items())}.")


def _send(run: RunRecord, to: str, settings: TrackerConfig) -> tuple[str, str]:
    """In a word what was done, and what it was.

    Raises:
        RunFailed: if the tracker does not take it.
    """
    from lora_exp.track.delivery import deliver

    if run.state == "running":
        return "left alone", "is being trained; left alone until it has ended"
    if not any(run.folder.metrics()):
        return "left alone", f"{run.state}, without metrics so far"
    try:
        delivery = deliver(run, to, settings)
    except KeyboardInterrupt:
        _leave(run, to, settings)
        raise
    except Exception as error:
        _leave(run, to, settings)
        raise RunFailed(
            f"{run.name}: {to} does not take it ({one_line(error)}). The same command goes on "
            "from here."
        ) from error
    if delivery.sent is None:
        return "there already", "was sent before"
    return "sent", f"{delivery.sent} of {delivery.lines} lines of metrics were new"


def _leave(run: RunRecord, to: str, settings: TrackerConfig) -> None:
    if to == "wandb":
        from lora_exp.track import RunInfo
        from lora_exp.track.wandb import give_up

        give_up(settings, RunInfo.of(run, settings))
