"""From the points of a grid to the runs that are left to train, each of them written down."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lora_exp.errors import UserError
from lora_exp.grid import snapshot
from lora_exp.grid.packs import pack_key
from lora_exp.grid.stages import Later
from lora_exp.init_from import is_from_best
from lora_exp.runs import files
from lora_exp.runs.checks import check
from lora_exp.runs.config import Config
from lora_exp.runs.folder import RunFolder, check_writable
from lora_exp.runs.grid import Grid, check_name
from lora_exp.runs.lease import RunBusy, is_held
from lora_exp.runs.provenance import PATCH, provenance
from lora_exp.train.job import Identity, identify

OF_THE_GRID = {
    "device": "kind of device",
    "outputs": "folder of outputs",
    "grid": "name",
    "dry_run": "answer",
    "detach": "answer",
}
"""What all points of a grid have in common."""
T = TypeVar("T")
POINTS_SHOWN = 3
"""Most points that a message lists."""


@dataclass(frozen=True)
class Point:
    """One combination of overrides that the user asked for."""

    overrides: list[str]
    """As they stand on the command line."""
    config: Callable[[], Config]
    """Composes the config; raises UserError."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of the grid."""

    identity: Identity
    overrides: list[str]
    """Of its first point."""
    before: str
    """What became of it before: `new`, a state of its status, or `busy`: trained at this moment."""

    @property
    def config(self) -> Config:
        """What is trained."""
        return self.identity.config

    @property
    def folder(self) -> RunFolder:
        """Where it is written down."""
        return self.identity.folder

    @property
    def done(self) -> bool:
        """It has a result already, and shall keep it."""
        return self.before == "done" and not self.config.rerun

    @property
    def failed(self) -> bool:
        """It failed, and is not trained again before somebody asks for that."""
        return self.before == "failed" and not self.config.rerun


@dataclass(frozen=True)
class Plan:
    """What a grid comes to."""

    runs: list[PlannedRun]
    """Each run once, in the order of its first point."""
    later: list[Later]
    """What waits for runs of these."""
    of_point: list[int]
    """For each point, the number of its run, or of what waits, counted after the runs."""
    device: str
    """`auto`, `cpu` or `cuda`: what all points want."""
    dry_run: bool
    """It is only to be shown."""
    detach: bool
    """It is left to a process of its own."""

    @property
    def to_train(self) -> list[PlannedRun]:
        """The runs without a result; those that failed wait until they are asked for."""
        return [run for run in self.runs if not run.done and not run.failed]

    def for_points(self, of_runs: Sequence[T]) -> list[T]:
        """What belongs to each point, from what belongs to each run."""
        return [of_runs[number] for number in self.of_point]

    def settle(self) -> None:
        """Complete what a killed process left of runs that are done."""
        for run in self.runs:
            if run.done:
                run.folder.settle()

    @property
    def outputs(self) -> Path:
        """The folder of all its runs."""
        return self.runs[0].folder.path.parent.parent

    @property
    def joins(self) -> bool:
        """The user has named the grid, and it lacks some of the runs."""
        name = self.runs[0].config.grid
        if name is None:
            return False
        known = Grid(self.outputs / "grids" / name).record.get("runs", [])
        return not {run.folder.name for run in self.runs} <= {*known}

    def packs(self) -> list[list[PlannedRun]]:
        """The runs to train, those together that can be, as many as `pack.size` allows."""
        packs: dict[str, list[list[PlannedRun]]] = {}
        for run in self.to_train:
            key, most = pack_key(run.config), run.config.pack.size
            found = packs.setdefault(key or run.folder.name, [[]])
            if len(found[-1]) == most:
                found.append([])
            found[-1].append(run)
        return [pack for found in packs.values() for pack in found]


def make(points: Sequence[Point], *, several_devices: bool = False) -> Plan:
    """Check and identify every point; nothing is written.

    Args:
        points: of the grid.
        several_devices: a run may be trained by several processes.

    Raises:
        UserError: for what is wrong with any of the points, all of it at once.
    """
    problems: dict[str, list[int]] = {}
    configs: dict[int, Config] = {}

    def note(error: UserError, number: int) -> None:
        for problem in re.split(r"\n(?=\S)", str(error)):
            problems.setdefault(problem, []).append(number)

    for number, point in enumerate(points):
        try:
            configs[number] = config = point.config()
            check(config)
            check_name(config.grid)
            if not several_devices:
                _check_processes(config)
        except UserError as error:
            note(error, number)
    for key, noun in OF_THE_GRID.items():
        values = sorted({str(getattr(config, key)) for config in configs.values()})
        if len(values) > 1:
            problems[f"{key}={','.join(values)}: one grid has one {noun}."] = [*range(len(points))]

    runs: dict[str, PlannedRun] = {}
    later: dict[str, Later] = {}
    of_point: dict[int, str] = {}
    unidentified: dict[str, UserError] = {}
    invalid = {number for numbers in problems.values() for number in numbers}
    # What starts from the best of others comes after them.
    for number in sorted(configs.keys() - invalid, key=lambda n: (is_from_best(configs[n]), n)):
        overrides, config = points[number].overrides, configs[number]
        try:
            waiting = Later(overrides, config)
            if is_from_best(config) and any(waiting.waits_for(run) for run in runs.values()):
                key = repr(config)
                later.setdefault(key, waiting)
            else:
                identity = _identify(config, unidentified)
                key = identity.signature
                if key not in runs:
                    runs[key] = PlannedRun(identity, overrides, _before(identity.folder))
            of_point[number] = key
        except UserError as error:
            note(error, number)
    if problems:
        raise UserError(_told(problems, distinguishing([point.overrides for point in points])))
    order = {key: number for number, key in enumerate([*runs, *later])}
    return Plan(
        list(runs.values()),
        list(later.values()),
        [order[of_point[number]] for number in range(len(points))],
        configs[0].device,
        configs[0].dry_run,
        configs[0].detach,
    )


def freeze(plan: Plan, launcher: dict[str, Any], gpu: str | None, study: str | None = None) -> Grid:
    """Write down the grid and the runs to train, so that nothing that is edited later changes them.

    What another process trains at this moment is left as it is.

    Args:
        plan: checked.
        launcher: `name`, `local` or `slurm`, and its settings.
        gpu: names of the GPUs that will train it, None for CPUs or if that is not known.
        study: that the user chose, if any.

    Raises:
        UserError: if the outputs folder cannot be written to.
    """
    record, patch = provenance(signature="", group="", overrides=[], gpu=gpu, content={})
    taken = snapshot.take(plan.outputs)
    own = {"command": record["command"], "snapshot": taken.name}
    later = [one.record for one in plan.later]
    folders = [run.folder for run in plan.runs]
    of_study = {} if study is None else {"study": study}
    with files.told(plan.outputs):
        grid = Grid.create(
            plan.outputs,
            plan.runs[0].config.grid,
            folders,
            launcher,
            **own,
            **of_study,
            later=later,
        )
        if patch:
            patch = taken / PATCH  # one file for all of them
        for run in plan.to_train:
            folder = run.folder
            own |= {"signature": run.identity.signature, "group": run.identity.group}
            own |= {"content": run.identity.content}
            with suppress(RunBusy), folder.lock():
                if folder.result is not None and run.config.rerun:
                    folder.supersede()
                if folder.result is None:
                    config = replace(run.config, rerun=False, dry_run=False, detach=False)
                    folder.create(
                        config, record | own | {"overrides": run.overrides}, patch, durable=False
                    )
                    queue(folder)
        os.sync()  # once for all of them
    return grid


def queue(folder: RunFolder) -> None:
    """Let a run be trained, whatever became of it before; it is locked by this process."""
    folder.withdraw_cancel()
    folder.set_status("queued", **({"attempt": 0} | folder.progress))


def _before(folder: RunFolder) -> str:
    if not (folder.path / "config.yaml").exists():
        return "new"
    state = folder.status["state"]
    return "busy" if state != "done" and is_held(folder.leases) else state


def distinguishing(points: Sequence[Sequence[str]]) -> list[str]:
    """What tells each point from the others: its overrides without those that all of them have."""
    shared = set.intersection(*map(set, points)) if points else set()
    return [" ".join(override for override in point if override not in shared) for point in points]


def _check_processes(config: Config) -> None:
    """A grid gives each device a run; runs that want several devices are given one by one."""
    processes = config.train.devices * config.train.nodes
    if processes > 1:
        raise UserError(
            f"train.devices={config.train.devices} train.nodes={config.train.nodes}: a grid trains "
            "each run on one device. Leave them out, or give hydra/launcher=slurm, or "
            "hydra/launcher=basic: then they run one after the other, each on several devices."
        )


def _identify(config: Config, failed: dict[str, UserError]) -> Identity:
    """`identify`, which looks at data and backbone: only once where they are not there."""
    key = repr((config.task, config.model, config.outputs))
    if key in failed:
        raise failed[key]
    try:
        identity = identify(config)
        check_writable(Path(config.outputs))
    except UserError as error:
        failed[key] = error
        raise
    return identity


def _told(problems: dict[str, list[int]], names: list[str]) -> str:
    """Each problem once, with the points that have it where that is not all of them."""
    told = []
    for problem, numbers in problems.items():
        told.append(problem)
        if len(numbers) < len(names):
            shown = "; ".join(names[number] for number in numbers[:POINTS_SHOWN])
            more = len(numbers) - POINTS_SHOWN
            told.append(f"  at {shown}" + (f"; and {more} more" if more > 0 else ""))
    return "\n".join(told)
