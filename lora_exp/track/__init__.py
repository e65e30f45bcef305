"""Where metrics go besides `metrics.jsonl`.

The run store writes `metrics.jsonl`, which is the truth. A sink is fed the same records so that
somebody can watch; it may lose them, but it never stops or slows the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lora_exp.runs.config import TrackerConfig


@dataclass(frozen=True)
class RunInfo:
    """What a sink tells about the run."""

    signature: str
    """The run's identity; W&B's run id."""
    group: str
    """Shared by runs that differ only in seed; W&B's group."""
    name: str
    """Readable slug; W&B's display name."""
    config: dict[str, Any]
    """The whole resolved config, nested."""
    outputs: Path
    """Folder for the sink's own files; W&B's go to its `wandb` folder."""


class Sink(Protocol):
    """Somebody who is told about a run. Neither method raises."""

    def log(self, record: dict[str, Any]) -> None:
        """Pass on one line of `metrics.jsonl`: `step`, `epoch`, `split`, names and values.

        Returns at once, whatever becomes of the record.
        """
        ...

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        """End the run: what was passed on is delivered, or given up after a bounded time.

        Args:
            state: `done`, `failed`, `preempted` or `cancelled`.
            summary: the numbers to show for the whole run, such as those of `result.json`.
        """
        ...


def sinks(tracker: TrackerConfig, run: RunInfo) -> list[Sink]:
    """The sinks that the config asks for; they start at once, in the background."""
    if tracker.name == "none" or tracker.mode == "disabled":
        return []
    from lora_exp.track.wandb import WandbSink

    return [WandbSink(tracker, run)]
