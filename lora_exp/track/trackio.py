"""Trackio: a database in `outputs/trackio/`, or where `TRACKIO_DIR` says.

Written through Trackio's store, not through its `Run`, which prints, and asks the hub who you are.
`TRACKIO_DIR=outputs/trackio trackio show` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from threading import Lock

from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.values import flat
from lora_exp.track import Line, RunInfo
from lora_exp.track.alone import alone

FOLDER = "TRACKIO_DIR"
COORDINATES = {"step", "epoch", "timestamp"}
"""Of a line in Trackio's store: what its values belong to."""


_importing = Lock()


def start(tracker: TrackerConfig, info: RunInfo) -> TrackioRun:
    """The run in Trackio's database."""
    with _importing:
        given = os.environ.get(FOLDER)
        # Trackio reads it once, when it is imported; to others it says what the user has chosen.
        os.environ[FOLDER] = given or str(info.outputs.absolute() / "trackio")
        import_module("trackio.sqlite_storage")
        if given is None:
            del os.environ[FOLDER]
    return TrackioRun(tracker, info)


class TrackioRun:
    """One run. Each line has an identity of its own, and stands there once whoever sends it."""

    def __init__(self, tracker: TrackerConfig, info: RunInfo) -> None:
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        self._folder = TRACKIO_DIR
        self._store, self._project, self._info = SQLiteStorage, tracker.project, info
        self._config = {**dict(flat(info.config)), "_Group": info.group, "tags": list(info.tags)}
        with alone(self._folder):
            logged = SQLiteStorage.get_logs(tracker.project, info.name, run_id=info.signature)
        self._known = {_identity(line["step"], line) for line in logged}
        self._last = -1

    def log(self, lines: Sequence[Line]) -> int:
        """Add those that are not there."""
        new: dict[str, Line] = {}
        for step, values in lines:
            points = {k: v for k, v in values.items() if k != "epoch" or step != self._last}
            self._last = step
            identity = _identity(step, points)
            if identity not in self._known:
                self._known.add(identity)
                new[identity] = step, points
        if new:
            with alone(self._folder):
                self._store.bulk_log(
                    self._project,
                    self._info.name,
                    [points for _, points in new.values()],
                    steps=[step for step, _ in new.values()],
                    config=self._config,
                    log_ids=[f"{self._info.signature}-{identity}" for identity in new],
                    run_id=self._info.signature,
                )
        return len(new)

    def finish(self, state: str, summary: dict[str, float]) -> None:
        """The result is a line at the last step: `result/accuracy`."""
        self._config["state"] = state
        result = {f"result/{name}": value for name, value in summary.items()}
        if result:
            self.log([(max(self._last, 0), result)])


def _identity(step: int, values: Iterable[str]) -> str:
    """A line's step and the names of its values."""
    return "-".join([str(step), *sorted({*values} - COORDINATES)])
