"""`retry`: runs that ended without a result are trained again, as they were started."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from lora_exp.errors import RunFailed, UserError
from lora_exp.runs.config import CONF, Config
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid
from lora_exp.runs.records import LOST, Records, RunRecord
from lora_exp.runs.values import schema
from lora_exp.text import count
from lora_exp.verbs.arguments import Filter, Outputs
from lora_exp.verbs.choice import required

HERE = {"name": "local"}
"""The launcher of runs that are of no grid."""
Part = tuple[Grid, Sequence[RunFolder], dict[str, Any]]
"""Runs of a grid, and the launcher that is to train them."""
RETRIED = ("failed", "cancelled", "preempted", LOST)


def retry(filters: Filter = None, outputs: Outputs = Path("outputs")) -> None:
    """Train runs that failed or were cancelled, preempted or lost, from their last checkpoints.

    Each is trained as its grid was, on this machine or on SLURM, unless the launcher is given as
    well: retry state=failed hydra/launcher=slurm hydra.launcher.time=04:00:00. Runs that are queued
    are left to those who have them, unless the filter says state=queued.
    """
    words = filters or []
    given = [word for word in words if word.startswith(("hydra/", "hydra.", "+hydra."))]
    selector = required([word for word in words if word not in given], "retry")
    outputs = outputs.absolute()  # also for jobs, which run somewhere else
    records = Records(outputs)
    wanted = (*RETRIED, "queued") if selector.names("state") else RETRIED
    chosen = [run for run in selector.among(records.runs) if run.state in wanted]
    again = [run for run in chosen if not _goes_on(run, records)]
    if len(again) < len(chosen):
        typer.echo(f"Left to their SLURM jobs, which go on: {count(len(chosen) - len(again))}.")
    parts = _by_grid(again)
    launchers = [_launcher(grid.launcher if grid else HERE, given) for grid, _ in parts]
    if any(each["name"] == "slurm" for each in launchers) and not shutil.which("sbatch"):
        raise UserError("retry: there is no sbatch here; hydra/launcher=local trains here.")
    work: list[Part] = []
    for (grid, runs), launcher in zip(parts, launchers, strict=True):
        if queued := [run.folder for run in runs if _queue(run.folder)]:
            work.append((_recorded(outputs, grid, queued, launcher), queued, launcher))
    if not work:
        typer.echo(f"There is nothing to retry among the runs of {selector}.")
        return
    names = [run.name for _, runs, _ in work for run in runs]
    typer.echo(f"Queued again: {count(len(names))}.")
    _train(work)
    _tell(outputs, names)


def _goes_on(run: RunRecord, records: Records) -> bool:
    """Jobs of its grid will take it up of themselves."""
    if run.state in ("failed", "cancelled"):
        return False
    jobs = [job for grid in run.grids for job in records.jobs_of(grid).values()]
    return any(job.known and not job.ended for job in jobs)


def _by_grid(runs: Sequence[RunRecord]) -> list[tuple[Grid | None, list[RunRecord]]]:
    """The runs by their newest grid; None: those that are of none."""
    found: dict[Path | None, tuple[Grid | None, list[RunRecord]]] = {}
    for run in runs:
        grid = run.grids[-1] if run.grids else None
        found.setdefault(grid and grid.path, (grid, []))[1].append(run)
    return list(found.values())


def _recorded(
    outputs: Path, grid: Grid | None, runs: Sequence[RunFolder], launcher: dict[str, Any]
) -> Grid:
    """The grid with this launcher; a new one for runs that are of none."""
    if grid is None:
        command = shlex.join(["python", "-m", "lora_exp", *sys.argv[1:]])
        return Grid.create(outputs, None, runs, launcher, command=command)
    if grid.launcher == launcher:
        return grid
    own = ("name", "created", "cwd", "launcher", "runs")
    more = {key: value for key, value in grid.record.items() if key not in own}
    return Grid.create(outputs, grid.name, runs, launcher, **more)


def _queue(folder: RunFolder) -> bool:
    """Let a run be trained, unless it is, or is done by now, or its config is lost or changed."""
    from lora_exp.grid.plan import queue

    try:
        with folder.lock():
            if folder.result is None and folder.config_to_train:  # which it must have
                queue(folder)
                return True
    except UserError as error:
        typer.echo(str(error), err=True)
    return False


def _train(work: Sequence[Part]) -> None:
    """Submit what is for SLURM, which is quickly done; then train here what is for here.

    All of it is trained with the code of now, which may have been mended meanwhile.
    """
    from lora_exp.grid import notify

    for grid, runs, launcher in work:
        if launcher["name"] == "slurm":
            from lora_exp.grid import slurm, snapshot

            settings = {key: value for key, value in launcher.items() if key != "name"}
            code = snapshot.take(grid.outputs)
            slurm.submit(grid, runs, slurm.SlurmSettings.of(settings), code=code)
    for grid, runs, launcher in work:
        if launcher["name"] == "local":
            _train_here(grid, runs)
            notify.ended(grid)


def _train_here(grid: Grid, runs: Sequence[RunFolder]) -> None:
    from lora_exp.grid import local
    from lora_exp.train.job import execute

    several = [run for run in runs if _processes(run.config) > 1]
    if single := [run for run in runs if run not in several]:
        local.train_runs(grid, single)
    for run in several:  # each has all devices for itself
        with suppress(RunFailed):  # it is told at the end
            config = replace(run.config, outputs=str(grid.outputs))
            execute(config, run.provenance.get("overrides") or [])


def _processes(config: Config) -> int:
    return config.train.devices * config.train.nodes


def _tell(outputs: Path, names: Sequence[str]) -> None:
    """Where the runs stand now.

    Raises:
        RunFailed: if one of them has failed again.
    """
    from lora_exp.verbs.status import told

    wanted = {*names}
    runs = [run for run in Records(outputs).runs if run.name in wanted]
    typer.echo(told(runs))
    failed = sum(run.state == "failed" for run in runs)
    if failed:
        raise RunFailed(f"{count(failed)} failed again.")


# -- the launcher ----------------------------------------------------------------------------------


def _launcher(recorded: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """How a grid is trained: as it was recorded, but for what the user has said.

    Args:
        recorded: the grid's launcher, `name` and settings.
        words: `hydra/launcher=NAME`, `hydra.launcher.KEY=VALUE`.

    Raises:
        UserError: for a launcher or setting that there is not.
    """
    if not words:
        return recorded
    named = any(word.startswith("hydra/launcher=") for word in words)
    launcher = _composed(words) if named else _with_settings(recorded, words)
    if launcher["name"] == "slurm":
        from lora_exp.grid.slurm import SlurmSettings

        settings = {key: value for key, value in launcher.items() if key != "name"}
        launcher |= asdict(SlurmSettings.of(settings))
    return launcher


def _with_settings(recorded: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from lora_exp.explain import explained

    if recorded["name"] != "slurm":
        raise UserError(f"{words[0]}: hydra/launcher={recorded['name']} has no settings.")
    launcher = OmegaConf.create(recorded)
    with explained():
        for override in OverridesParser.create().parse_overrides(list(words)):
            key = override.key_or_group.removeprefix("hydra.launcher.")
            OmegaConf.update(launcher, key, override.value(), force_add=True)
        changed = OmegaConf.to_container(launcher)
    assert isinstance(changed, dict)
    return {str(key): value for key, value in changed.items()}


def _composed(words: Sequence[str]) -> dict[str, Any]:
    """`name` and settings of a launcher, as the command line of a grid would have them."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from lora_exp.explain import explained

    ConfigStore.instance().store(name="schema", node=schema())
    with explained(), initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        config = compose("config", overrides=list(words), return_hydra_config=True)
        settings = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(settings, dict)
    target = str(settings.pop("_target_")).rpartition(".")[2]
    for name in ("local", "slurm"):
        if target.lower() == f"{name}launcher":
            return {"name": name, **{str(key): value for key, value in settings.items()}}
    raise UserError(f"{' '.join(words)}: retry takes hydra/launcher=local or slurm.")
