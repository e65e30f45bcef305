"""Where metrics go besides `metrics.jsonl`.

The run store writes `metrics.jsonl`, which is the truth. A sink is fed the same records so that
somebody can watch; it may lose them, but it never stops or slows the run. `sync` feeds the same
trackers from the run folder, whenever it likes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.records import Records, RunRecord

COORDINATES = ("step", "epoch", "split")
"""Of a line of `metrics.jsonl`: what its values belong to."""
TAG_LENGTH = 64
"""W&B takes no longer ones."""

log = logging.getLogger("lora_exp")


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told about a run."""

    signature: str
    """The run's identity, another one each time it is trained again; W&B's run id."""
    group: str
    """Shared by runs that differ only in seed; W&B's group."""
    name: str
    """Readable, and it ends with the identity; W&B's display name."""
    config: dict[str, Any]
    """The whole resolved config, nested."""
    outputs: Path
    """What a tracker keeps here is in a folder of its name."""
    method: str = ""
    """W&B's job type."""
    tags: tuple[str, ...] = ()
    """The grids and studies that it is of."""
    adapter: Path | None = None
    """The folder of what was trained, if it is to be kept as an artifact."""

    @classmethod
    def of(cls, run: RunRecord, tracker: TrackerConfig) -> RunInfo:
        """As the run's folder has it."""
        folder = run.folder
        config, identity = folder.config, folder.watched_as
        names = [*(grid.name for grid in run.grids), *run.studies]
        return cls(
            signature=identity,
            group=run.group,
            name=folder.name.removesuffix(folder.signature) + identity,
            config=asdict(config),
            outputs=folder.path.parent.parent,
            method=config.method,
            tags=tuple(dict.fromkeys(name[:TAG_LENGTH] for name in names)),
            adapter=folder.adapter if tracker.artifact else None,
        )


class Sink(Protocol):
    """Somebody who is told about a run while it trains. Neither method raises."""

    def log(self, record: dict[str, Any]) -> None:
        """Pass on one line of `metrics.jsonl`: `step`, `epoch`, `split`, names and values.

        Returns at once, whatever becomes of the record.
        """
        ...

    def finish(self, state: str, result: dict[str, Any] | None) -> None:
        """End the run: what was passed on is delivered, or given up after a bounded time.

        Args:
            state: `done`, `failed`, `preempted` or `cancelled`.
            result: `result.json` of a run that is done.
        """
        ...


Line = tuple[int, dict[str, float]]
"""A step, and the values that `named` makes of a line of `metrics.jsonl`."""


class Tracked(Protocol):
    """A run as a tracker knows it. All methods may take their time and may raise."""

    def log(self, lines: Sequence[Line]) -> int:
        """Add lines, in the order in which they were written.

        Returns:
            How many are new to the tracker; what it has already is not sent again.
        """
        ...

    def finish(self, state: str, summary: dict[str, float]) -> None:
        """Deliver everything.

        Args:
            state: how the run ended.
            summary: `summary` of its result.
        """
        ...


def sinks(tracker: TrackerConfig, folder: RunFolder) -> list[Sink]:
    """The sinks that the config asks for; they start at once, in the background."""
    names = watching(tracker)
    if not names:
        return []
    from lora_exp.track.background import Background

    try:
        run = RunInfo.of(Records(folder.path.parent.parent).of(folder), tracker)
    except Exception as error:  # of the records of grids, which no run depends on
        log.warning("Nobody watches %s: %s: %s.", folder.name, type(error).__name__, error)
        return []
    return [Background(name, tracker, run) for name in names]


def watching(tracker: TrackerConfig) -> list[str]:
    """The names of the trackers that a config asks for, each once."""
    names = dict.fromkeys([tracker.name, *tracker.also])
    return [
        name
        for name in names
        if name != "none" and not (name == "wandb" and tracker.mode == "disabled")
    ]


def start(name: str, tracker: TrackerConfig, run: RunInfo) -> Tracked:
    """Open a run at a tracker, or open it again.

    Args:
        name: of the tracker, which is that of its module here.
        tracker: its settings.
        run: what it is told.
    """
    return import_module(f"lora_exp.track.{name}").start(tracker, run)


def named(record: Mapping[str, Any]) -> Line:
    """The step of a line of `metrics.jsonl`, its `epoch`, and `split/name` for each value."""
    split = record["split"]
    values = {f"{split}/{k}": v for k, v in record.items() if k not in COORDINATES}
    return record["step"], {"epoch": record["epoch"], **values}


def summary(result: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers of `result.json` under the names that they have there: those of `metrics`, and
    what it cost. Empty for a run without a result."""
    if result is None:
        return {}
    values = {**result, **result["metrics"]}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
