"""MLflow: an SQLite store in `outputs/mlflow/`, or the server that `MLFLOW_TRACKING_URI` names.

`mlflow ui --backend-store-uri sqlite:///outputs/mlflow/mlflow.db` shows it (package `mlflow`).
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.values import flat
from lora_exp.track import Line, RunInfo
from lora_exp.track.alone import alone

SERVER = "MLFLOW_TRACKING_URI"
IDENTITY = "lora_exp.signature"
"""The tag by which a run is found again."""
PARAMETER_LENGTH = 6000
"""MLflow takes no longer values."""
PARAMETERS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
UNNAMEABLE = re.compile(r"[^\w/. -]")
"""What has no place in the name of a metric, such as the + of chrF++."""


def start(tracker: TrackerConfig, info: RunInfo) -> MlflowRun:
    """The run in MLflow's store."""
    return MlflowRun(tracker, info)


class MlflowRun:
    """One run; a metric has each step once."""

    def __init__(self, tracker: TrackerConfig, info: RunInfo) -> None:
        self._info = info
        self._client = _client(info)
        with alone(_folder(info)):  # or two might make one experiment
            self._id = self._find(tracker.project) or self._create(tracker.project)
        self._client.update_run(self._id, "RUNNING")
        self._known: dict[str, set[int]] = {}

    def _find(self, project: str) -> str | None:
        experiment = self._client.get_experiment_by_name(project)
        if experiment is None:
            return None
        wanted = f"tags.`{IDENTITY}` = '{self._info.signature}'"
        found = self._client.search_runs([experiment.experiment_id], wanted, max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, project: str) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(project)
        number = experiment and experiment.experiment_id
        info = self._info
        tags = {IDENTITY: info.signature, "group": info.group, "method": info.method}
        tags |= {f"tag.{tag}": "true" for tag in info.tags}
        if number is None:
            number = self._client.create_experiment(project, artifact_location=_artifacts(info))
        run = self._client.create_run(number, run_name=info.name, tags=tags)
        config = [Param(key, str(value)[:PARAMETER_LENGTH]) for key, value in flat(info.config)]
        for some in _parts(config, PARAMETERS_AT_ONCE):
            self._client.log_batch(run.info.run_id, params=some)
        return run.info.run_id

    def log(self, lines: Sequence[Line]) -> int:
        """Add what the store does not have."""
        from mlflow.entities import Metric

        now, new, metrics = int(time.time() * 1000), 0, []
        for step, values in lines:
            before = len(metrics)
            for name, value in values.items():
                plain = UNNAMEABLE.sub("_", name)
                if step not in self._steps(plain):
                    self._known[plain].add(step)
                    metrics.append(Metric(plain, value, now, step))
            new += len(metrics) > before
        for some in _parts(metrics, METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=some)
        return new

    def _steps(self, name: str) -> set[int]:
        if name not in self._known:
            history = self._client.get_metric_history(self._id, name)
            self._known[name] = {metric.step for metric in history}
        return self._known[name]

    def finish(self, state: str, summary: dict[str, float]) -> None:
        """The result's numbers are metrics under their own names, at step 0."""
        self.log([(0, summary)])
        if state == "done" and self._info.adapter is not None:
            self._client.log_artifacts(self._id, str(self._info.adapter), "adapter")
        status = {"done": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        self._client.set_terminated(self._id, status)


def _folder(info: RunInfo) -> Path:
    return info.outputs.absolute() / "mlflow"


def _artifacts(info: RunInfo) -> str | None:
    """Where artifacts go; a server knows a place of its own."""
    return None if SERVER in os.environ else (_folder(info) / "artifacts").as_uri()


def _client(info: RunInfo) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if SERVER in os.environ:
        return MlflowClient()
    folder = _folder(info)
    with alone(folder):  # the first one makes its tables
        # Without a place for registered models, of which there are none, the skinny package
        # refuses to start.
        return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}", registry_uri=folder.as_uri())


def _parts(whole: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(whole), size):
        yield whole[first : first + size]
