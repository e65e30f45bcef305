"""From the points of a grid to the runs that are left to train, each of them written down."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from lora_exp.errors import UserError
from lora_exp.methods import shares_backbone
from lora_exp.runs.config import Config, check
from lora_exp.runs.folder import RunBusy, RunFolder
from lora_exp.runs.provenance import provenance
from lora_exp.train.job import Identity, identify

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
    done: bool
    """It has a result already, and shall keep it."""

    @property
    def config(self) -> Config:
        """What is trained."""
        return self.identity.config

    @property
    def folder(self) -> RunFolder:
        """Where it is written down."""
        return self.identity.folder


@dataclass(frozen=True)
class Plan:
    """What a grid comes to."""

    runs: list[PlannedRun]
    """Each run once, in the order of its first point."""
    of_point: list[int]
    """For each point, the number of its run."""
    device: str
    """`auto`, `cpu` or `cuda`: what all points want."""

    @property
    def to_train(self) -> list[PlannedRun]:
        """The runs without a result."""
        return [run for run in self.runs if not run.done]


def make(points: Sequence[Point]) -> Plan:
    """Check and identify every point; nothing is written.

    Raises:
        UserError: for what is wrong with any of the points, all of it at once.
    """
    runs: dict[tuple[str, str], PlannedRun] = {}
    keys: list[tuple[str, str]] = []
    problems: dict[str, list[int]] = {}
    unidentified: dict[str, UserError] = {}
    wanted: set[str] = set()
    for number, point in enumerate(points):
        try:
            config = point.config()
            check(config)
            wanted.add(config.device)
            _check_processes(config)
            identity = _identify(config, unidentified)
        except UserError as error:
            for problem in re.split(r"\n(?=\S)", str(error)):
                problems.setdefault(problem, []).append(number)
            continue
        key = (str(identity.folder.path.parent), identity.signature)
        keys.append(key)
        if key not in runs:
            done = identity.folder.result is not None and not config.rerun
            runs[key] = PlannedRun(identity, point.overrides, done)
    device = ",".join(sorted(wanted))
    if len(wanted) > 1:
        problems[f"device={device}: one grid trains on one kind of device."] = [*range(len(points))]
    if problems:
        raise UserError(_told(problems, distinguishing([point.overrides for point in points])))
    order = {key: number for number, key in enumerate(runs)}
    return Plan(list(runs.values()), [order[key] for key in keys], device)


def freeze(plan: Plan, gpu: str | None) -> None:
    """Write down the runs to train, so that nothing that is edited later changes them.

    What another process trains at this moment is left as it is.

    Args:
        plan: checked.
        gpu: names of the GPUs that will train it, None for CPUs.

    Raises:
        UserError: if the outputs folder cannot be written to.
    """
    record = provenance(signature="", group="", overrides=[], gpu=gpu)
    for run in plan.to_train:
        folder = run.folder
        own = {"signature": run.identity.signature, "group": run.identity.group}
        with suppress(RunBusy), folder.lock():
            if folder.result is not None:
                folder.supersede()
            folder.create(
                replace(run.config, rerun=False), record | own | {"overrides": run.overrides}
            )
            if not folder.has_status:
                folder.set_status("queued", attempt=0)


def pack_key(config: Config) -> str | None:
    """Runs with equal keys can be trained together over one backbone; None: the run trains alone.

    Rank, alpha and dropout of LoRA, ranks and alphas by pattern, task, seed, learning rate, batch
    size and number of updates may differ within a pack.
    """
    lora, placement = config.lora, config.lora.placement
    if config.pack.size == 1 or not shares_backbone(config):
        return None
    shared = {
        "model": asdict(replace(config.model, init_from=None)),
        "precision": config.train.precision,
        "gradient_checkpointing": config.train.gradient_checkpointing,
        "placement": placement.preset if placement.targets is None else sorted(placement.targets),
        "layers": placement.layers,
        "train_head": lora.train_head,
        "left_out": sorted(name for name, rank in placement.rank_pattern.items() if rank == 0),
        "size": config.pack.size,
    }
    return json.dumps(shared, sort_keys=True)


def distinguishing(points: Sequence[Sequence[str]]) -> list[str]:
    """What tells each point from the others: its overrides without those that all of them have."""
    shared = set.intersection(*map(set, points)) if len(points) > 1 else set()
    return [" ".join(override for override in point if override not in shared) for point in points]


def _check_processes(config: Config) -> None:
    """A grid gives each device a run; runs that want several devices are given one by one."""
    processes = config.train.devices * config.train.nodes
    if processes > 1:
        raise UserError(
            f"train.devices={config.train.devices} train.nodes={config.train.nodes}: a grid trains "
            "each run on one device. Leave them out, or give hydra/launcher=basic: then the points "
            "run one after the other, each on several devices."
        )


def _identify(config: Config, failed: dict[str, UserError]) -> Identity:
    """`identify`, which looks at data and backbone: only once where they are not there."""
    key = repr((config.task, config.model, config.outputs))
    if key in failed:
        raise failed[key]
    try:
        identity = identify(config)
        identity.folder.check_writable()
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
