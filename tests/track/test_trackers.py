"""TensorBoard, Trackio and MLflow: what they show of a run, read back with their own readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest

from lora_exp import track
from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.track import RunInfo

LINES: list[dict[str, Any]] = [
    {"step": 1, "epoch": 0.5, "split": "train", "loss": 0.75},
    {"step": 2, "epoch": 1.0, "split": "train", "loss": 0.5},
    {"step": 2, "epoch": 1.0, "split": "validation", "accuracy": 0.875},
    {"step": 3, "epoch": 1.5, "split": "train", "loss": 0.25},
]
RESULT = {"metrics": {"accuracy": 0.875, "chrf++": 0.5}, "trainable_parameters": 1000}
CONFIG = {"seed": 1, "lora": {"r": 8, "placement": {"preset": "qv"}}, "names": ["a"], "none": None}
CURVES = {
    "train/loss": {1: 0.75, 2: 0.5, 3: 0.25},
    "validation/accuracy": {2: 0.875},
    "epoch": {1: 0.5, 2: 1.0, 3: 1.5},
}

Curves = dict[str, dict[int, float]]
"""Of each name, values by step; a step that stands twice is refused."""


def info(outputs: Path, **more: Any) -> RunInfo:
    return RunInfo("abc", "the-group", "run-abc", CONFIG, outputs, "lora", ("grid",), **more)


def add(curves: Curves, name: str, step: int, value: float) -> None:
    assert step not in curves.setdefault(name, {}), f"{name} has step {step} twice"
    curves[name][step] = value


def in_tensorboard(outputs: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(outputs / "tensorboard" / "run-abc")).Reload()
    curves: Curves = {}
    for name in found.Tags()["scalars"]:
        for event in found.Scalars(name):
            add(curves, name, event.step, event.value)
    return curves


def in_trackio(outputs: Path) -> Curves:
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("lora-exp", "run-abc", run_id="abc")))
"""
    curves: Curves = {}
    for line in json.loads(in_a_process(code, TRACKIO_DIR=str(outputs / "trackio"))):
        for name, value in line.items():
            if name not in ("step", "timestamp"):
                add(curves, name, line["step"], value)
    return curves


def in_a_process(code: str, *arguments: str, **variables: str) -> str:
    """Trackio knows one folder for each process."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | variables,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def mlflow_runs(outputs: Path) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{outputs}/mlflow/mlflow.db", outputs.as_uri())
    experiment = client.get_experiment_by_name("lora-exp")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def in_mlflow(outputs: Path) -> Curves:
    client, (run,) = mlflow_runs(outputs)
    curves: Curves = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            add(curves, name, metric.step, metric.value)
    return curves


def send(name: str, outputs: Path, state: str, lines: list[dict[str, Any]]) -> None:
    """As an attempt of a run does."""
    if name == "trackio":
        told = json.dumps([name, str(outputs), state, lines])
        code = "import json, sys, test_trackers; test_trackers.send_here(*json.loads(sys.argv[1]))"
        folder = Path(__file__).parent
        path = f"{folder}:{folder.parent}"
        assert in_a_process(code, told, PYTHONPATH=path) == ""
    else:
        send_here(name, outputs, state, lines)


def send_here(name: str, outputs: Path, state: str, lines: list[dict[str, Any]]) -> None:
    tracked = track.start(name, TrackerConfig(name=name), info(Path(outputs)))
    tracked.log([track.named(line) for line in lines])
    tracked.finish(state, track.summary(RESULT if state == "done" else None))


READERS: dict[str, tuple[Callable[[Path], Curves], Curves]] = {
    "tensorboard": (
        in_tensorboard,
        {f"result/{k}": {3: v} for k, v in track.summary(RESULT).items()},
    ),
    "trackio": (in_trackio, {f"result/{k}": {3: v} for k, v in track.summary(RESULT).items()}),
    "mlflow": (
        in_mlflow,
        {"accuracy": {0: 0.875}, "chrf__": {0: 0.5}, "trainable_parameters": {0: 1000}},
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_is_one_curve_with_each_step_once(name: str, tmp_path: Path) -> None:
    read, result = READERS[name]
    send(name, tmp_path, "preempted", LINES[:3])
    send(name, tmp_path, "done", LINES[1:])  # it goes on from the checkpoint after step 1
    assert read(tmp_path) == CURVES | result


def test_tensorboard_has_a_row_of_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    send("tensorboard", tmp_path, "done", LINES)
    found = EventAccumulator(str(tmp_path / "tensorboard" / "run-abc")).Reload()
    contents = found.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    assert start.group_name == "the-group"
    assert start.hparams["lora.r"].number_value == 8
    assert start.hparams["lora.placement.preset"].string_value == "qv"
    assert start.hparams["names"].string_value == "['a']"
    end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert end.status == 1  # success


def test_mlflow_finds_a_run_by_parameters_and_keeps_the_adapter(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "weights").write_text("trained")
    tracked = track.start("mlflow", TrackerConfig(), info(tmp_path, adapter=adapter))
    tracked.finish("done", {})
    client, (run,) = mlflow_runs(tmp_path)
    assert run.data.params["lora.placement.preset"] == "qv"
    assert (run.data.tags["group"], run.info.status) == ("the-group", "FINISHED")
    kept = client.list_artifacts(run.info.run_id, "adapter")
    assert [file.path for file in kept] == ["adapter/weights"]
    assert (tmp_path / "mlflow" / "artifacts").is_dir()


def test_several_watch_a_run_and_one_that_breaks_is_told_once(tiny: Path, tmp_path: Path) -> None:
    limits = ["train.max_steps=4", "train.log_every=2", "device=cpu"]
    given = [f"model.name_or_path={tiny}", f"outputs={tmp_path}", *limits]

    def break_trackio() -> None:
        from lora_exp.track import trackio

        def start(*arguments: object) -> None:
            raise RuntimeError("it is ill")

        trackio.start = start

    watching = ["tracker=tensorboard", "tracker.also=[wandb,trackio,tensorboard]"]
    ended = forked.run(*given, *watching, "tracker.mode=offline", before=break_trackio)
    assert ended.status == 0, ended.output
    assert ended.output.count("does not follow") == 1
    assert "trackio does not follow" in ended.output
    folder = RunFolder(forked.folder_of(tmp_path))
    assert folder.status["state"] == "done"
    assert len(list((tmp_path / "tensorboard" / folder.name).iterdir())) == 1
    (file,) = (tmp_path / "wandb").glob("offline-*/*.wandb")
    assert file.name == f"run-{folder.signature}.wandb"


@pytest.mark.parametrize("key", ["tracker=trackio", "tracker.also=[trackio]"])
def test_a_package_that_is_missing_is_told_before_anything_starts(
    key: str, tiny: Path, tmp_path: Path
) -> None:
    def uninstall() -> None:
        from lora_exp.runs import checks

        checks.TRACKERS["trackio"] = ("no_such_package",)
        checks.is_installed.cache_clear()

    ended = forked.run(
        key, f"model.name_or_path={tiny}", f"outputs={tmp_path / 'o'}", before=uninstall
    )
    assert ended.status == 2
    assert ended.output == (
        "lora_exp: tracker=trackio: it is not installed: pip install 'lora-exp[trackio]'\n"
    )
    assert not (tmp_path / "o").exists()


def test_a_tracker_that_there_is_not() -> None:
    ended = forked.run("tracker.also=[wandbb]")
    assert ended.status == 2
    assert "tracker.also=wandbb: must be one of wandb, tensorboard" in ended.output
