"""Sending to a tracker what a run's folder holds, once."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass

from lora_exp import track
from lora_exp.runs import files
from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.records import RunRecord
from lora_exp.track import RunInfo

SERVERS = {"wandb": "WANDB_BASE_URL", "mlflow": "MLFLOW_TRACKING_URI", "trackio": "TRACKIO_DIR"}
"""Where the environment says that a tracker is."""


@dataclass(frozen=True)
class Delivery:
    """What became of it."""

    lines: int
    """Of `metrics.jsonl`."""
    sent: int | None
    """How many of them were new to the tracker; None: all of the run was sent from here before."""


def deliver(run: RunRecord, name: str, tracker: TrackerConfig) -> Delivery:
    """Send a run; what the tracker has already is not sent again.

    Args:
        run: that has lines of metrics.
        name: of the tracker.
        tracker: its settings.

    Raises:
        Exception: of any kind that the tracker likes, if it does not take it.
    """
    info, lines = RunInfo.of(run, tracker), list(run.folder.metrics())
    ledger = info.outputs / name / "sent" / f"{info.signature}.json"
    place = f"{os.environ.get(SERVERS.get(name, ''))} {tracker.entity} {tracker.project}"
    if name == "wandb":
        place += f" {tracker.mode}"
    told = [run.state, run.result, lines, tracker.tags, info.tags, tracker.artifact]
    content = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    try:
        before = files.read_json(ledger) or {}
    except ValueError:  # empty, after a loss of power
        before = {}
    if before.get(place) == content:
        return Delivery(len(lines), None)
    tracked = track.start(name, tracker, info)
    sent = tracked.log([track.named(line) for line in lines])
    tracked.finish(run.state, track.summary(run.result))
    ledger.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(ledger, before | {place: content}, durable=False)
    return Delivery(len(lines), sent)
