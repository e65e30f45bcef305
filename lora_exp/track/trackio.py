"""Trackio: a database in `outputs/trackio/`, or where `TRACKIO_DIR` says.

Written through Trackio's store, not through its `Run`, which prints, and asks the hub who you are.
`TRACKIO_DIR=outputs/trackio trackio show` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from lora_exp.runs.config import TrackerConfig
from lora_exp.track import RunInfo, flat

COORDINATES = {"step", "epoch", "timestamp"}
"""Of a line in Trackio's store: what its values belong to."""


def start(tracker: TrackerConfig, info: RunInfo) -> TrackioRun:
    """The run in Trackio's database."""
    # Trackio reads it once, when it is imported.
    os.environ.setdefault("TRACKIO_DIR", str(info.outputs.absolute() / "trackio"))
    return TrackioRun(tracker, info)


class TrackioRun:
    """One run. Each line has an identity of its own, and stands there once whoever sends it."""

    def __init__(self, tracker: TrackerConfig, info: RunInfo) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self._store, self._project, self._info = SQLiteStorage, tracker.project, info
        self._config = {**dict(flat(info.config)), "_Group": info.group, "tags": list(info.tags)}
        logged = SQLiteStorage.get_logs(tracker.project, info.name, run_id=info.signature)
        self._known = {_identity(line["step"], line) for line in logged}
        self._last = -1

    def log(self, step: int, values: dict[str, float]) -> bool:
        """Add a line."""
        if step == self._last:
            values = {name: value for name, value in values.items() if name != "epoch"}
        self._last = step
        identity = _identity(step, values)
        if identity in self._known:
            return False
        self._known.add(identity)
        self._store.bulk_log(
            self._project,
            self._info.name,
            [values],
            steps=[step],
            config=self._config,
            log_ids=[f"{self._info.signature}-{identity}"],
            run_id=self._info.signature,
        )
        return True

    def finish(self, state: str, summary: dict[str, float]) -> None:
        """The result is a line at the last step: `result/accuracy`."""
        self._config["state"] = state
        self.log(max(self._last, 0), {f"result/{name}": value for name, value in summary.items()})


def _identity(step: int, values: Iterable[str]) -> str:
    """A line's step and the names of its values."""
    return "-".join([str(step), *sorted({*values} - COORDINATES)])
