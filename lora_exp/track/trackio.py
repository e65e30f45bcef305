"""Trackio: a database in `outputs/trackio/`, or where `TRACKIO_DIR` says.

Written through Trackio's store, not through its `Run`, which prints, and asks the hub who you are.
`TRACKIO_DIR=outputs/trackio trackio show` shows it.
"""

from __future__ import annotations

import os

from lora_exp.runs.config import TrackerConfig
from lora_exp.track import RunInfo, flat


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
        self._known = {(line["step"], *sorted(_names(line))) for line in logged}
        self._last = 0

    def log(self, step: int, values: dict[str, float]) -> bool:
        """Add a line."""
        self._last = step
        line = (step, *sorted(values))
        if line in self._known:
            return False
        self._known.add(line)
        self._write(step, values)
        return True

    def finish(self, state: str, summary: dict[str, float]) -> None:
        """The result is a line at the last step: `result/accuracy`."""
        self._config["state"] = state
        self.log(self._last, {f"result/{name}": value for name, value in summary.items()})

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._store.bulk_log(
            self._project,
            self._info.name,
            [values],
            steps=[step],
            config=self._config,
            log_ids=[f"{self._info.signature}-{step}-{'-'.join(sorted(values))}"],
            run_id=self._info.signature,
        )


def _names(line: dict[str, object]) -> list[str]:
    return [name for name in line if name not in ("step", "timestamp", "log_id")]
