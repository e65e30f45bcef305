"""W&B as a sink. Each run is a process of its own: that it ends is half of what counts."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wandb_server
from wandb_files import history, stored, summary, values

from lora_exp import track
from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.folder import RunFolder

KEY = "c0ffee" * 7
RECORDS = [
    {"step": 1, "epoch": 0.5, "split": "train", "loss": 0.75, "lr": 1e-3},
    {"step": 2, "epoch": 1.0, "split": "train", "loss": 0.5, "lr": 5e-4},
    {"step": 2, "epoch": 1.0, "split": "validation", "loss": 0.625, "accuracy": 0.875},
    {"step": 3, "epoch": 1.5, "split": "train", "loss": 0.25, "lr": 0.0},
]
MERGED = {
    1: {"epoch": 0.5, "train/loss": 0.75, "train/lr": 1e-3},
    2: {
        "epoch": 1.0,
        "train/loss": 0.5,
        "train/lr": 5e-4,
        "validation/loss": 0.625,
        "validation/accuracy": 0.875,
    },
    3: {"epoch": 1.5, "train/loss": 0.25, "train/lr": 0.0},
}
RESULT = {
    "metrics": {"accuracy": 0.875, "loss": 0.625},
    "last_metrics": {"accuracy": 0.5},
    "best_epoch": 1.0,
    "trainable_parameters": 1000,
    "missing": {"meteor": "no Java"},
}
SUMMARY = {"accuracy": 0.875, "loss": 0.625, "best_epoch": 1.0, "trainable_parameters": 1000}
CONFIG = {"seed": 1, "lora": {"r": 8, "placement": {"preset": "qv"}}}

PROGRAM = """
import json, logging, sys, time
from pathlib import Path
from lora_exp.runs.config import TrackerConfig
from lora_exp.track import RunInfo, background, wandb

logging.basicConfig(format="%(levelname)s %(message)s")
told = json.loads(sys.argv[1])
background.FINISH_SECONDS = told["patience"]
background.IMPATIENT_SECONDS = told["patience"] / 10
wandb._QUIET |= told["settings"]
tracker = TrackerConfig(name="wandb", mode=told["mode"], project="p", tags=["a", "b"])
Path("adapter").mkdir(exist_ok=True)
Path("adapter", "weights").write_text("trained")
runs = {
    state: background.Background(
        "wandb",
        tracker,
        RunInfo(
            f"id-{state}",
            "group",
            f"run {state}",
            told["config"],
            Path("outputs"),
            method="lora",
            tags=("b", "study"),
            adapter=Path("adapter") if told["artifact"] else None,
        ),
    )
    for state in told["states"]
}
for record in told["records"]:
    for run in runs.values():
        run.log(record)
time.sleep(told["training"])
finishing = time.monotonic()
for state, run in runs.items():
    run.finish(state, told["result"])
print(json.dumps(time.monotonic() - finishing))
"""


@dataclass
class Ended:
    """How a process ended that trained with W&B watching."""

    finish_seconds: float
    warnings: list[str]


def watched(
    folder: Path,
    mode: str,
    *states: str,
    records: list[dict[str, Any]] = RECORDS,
    patience: float = 20.0,
    training: float = 0.0,
    server: str | None = None,
    key: str | None = KEY,
    artifact: bool = False,
    **settings: Any,
) -> Ended:
    """Run `PROGRAM` at a terminal, in `folder`, until its pipes are closed as well."""
    told = {
        "mode": mode,
        "states": states or ("done",),
        "records": records,
        "patience": patience,
        "training": training,
        "config": CONFIG,
        "result": RESULT,
        "artifact": artifact,
        "settings": settings,
    }
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    variables |= {"HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    variables |= {"WANDB_BASE_URL": server} if server else {}
    variables |= {"WANDB_API_KEY": key} if key else {}
    terminal, far_end = pty.openpty()
    try:
        # stdin and stderr are what W&B looks at before it asks a question.
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(told)],
            cwd=folder,
            env=variables,
            stdin=far_end,
            stdout=subprocess.PIPE,
            stderr=far_end,
            timeout=60,
        )
        os.write(far_end, b"\n")  # so that there is something to read
        written = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(far_end)
    assert process.returncode == 0, written
    finish_seconds = json.loads(process.stdout)  # and nothing else
    lines = written.splitlines()
    warnings = [line for line in lines if line.startswith("WARNING ")]
    assert [line for line in lines if line] == warnings, "only warnings reach the terminal"
    return Ended(finish_seconds, warnings)


def files(folder: Path, signature: str) -> list[Path]:
    return sorted((folder / "outputs" / "wandb").glob(f"offline-*/run-{signature}.wandb"))


def test_offline_files_hold_what_was_logged(tmp_path: Path) -> None:
    ended = watched(tmp_path, "offline", "done", "failed", "preempted")
    assert not ended.warnings
    for state, exit_code in {"done": 0, "failed": 1, "preempted": 1}.items():
        (file,) = files(tmp_path, f"id-{state}")
        records = stored(file)
        assert history(records) == MERGED

        run = next(r.run for r in records if r.HasField("run"))
        assert (run.run_id, run.run_group, run.display_name) == (
            f"id-{state}",
            "group",
            f"run {state}",
        )
        assert (run.project, run.job_type) == ("p", "lora")
        assert list(run.tags) == ["a", "b", "study"]
        assert values(run.config.update) == CONFIG

        assert summary(records) == {**MERGED[1], **MERGED[2], **MERGED[3], **SUMMARY}

        assert [r.exit.exit_code for r in records if r.HasField("exit")] == [exit_code]
        assert any(r.HasField("preempting") for r in records) == (state == "preempted")


def test_the_adapter_of_a_run_that_is_done_is_an_artifact_when_asked(tmp_path: Path) -> None:
    assert not watched(tmp_path, "offline", "done", "failed", artifact=True).warnings
    (done,), (failed,) = (files(tmp_path, f"id-{state}") for state in ("done", "failed"))
    artifacts = [
        record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        for record in stored(done)
        if record.HasField("artifact") or record.request.HasField("log_artifact")
    ]
    (artifact,) = artifacts
    assert (artifact.type, artifact.name) == ("adapter", "adapter-id-done")
    assert [entry.path for entry in artifact.manifest.contents] == ["weights"]
    assert not any(record.HasField("artifact") for record in stored(failed))


def test_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    later = [{"step": 4, "epoch": 2.0, "split": "validation", "accuracy": 0.9}]
    assert not watched(tmp_path, "offline", "preempted").warnings
    assert not watched(tmp_path, "offline", "preempted", records=later).warnings
    first, second = (stored(file) for file in files(tmp_path, "id-preempted"))
    assert history(first) == MERGED
    assert history(second) == {4: {"epoch": 2.0, "validation/accuracy": 0.9}}


def test_online_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with wandb_server.serving() as server:
        server.runs["id-preempted"] = run = wandb_server.Stored(history={1: {}})
        ended = watched(tmp_path, "online", "preempted", server=server.address)
    assert not ended.warnings
    assert run.history == {1: {}, 2: MERGED[2], 3: MERGED[3]}
    upsert = run.upserts[0]
    assert (upsert["name"], upsert["groupName"], upsert["project"]) == (
        "id-preempted",
        "group",
        "p",
    )
    assert run.stream["preempting"] is True
    assert (run.stream["complete"], run.stream["exitcode"]) == (True, 1)


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections, says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    yield "http://127.0.0.1:9"


@pytest.mark.parametrize("server", [silent_server, closed_port])
def test_a_server_that_does_not_answer_costs_one_bounded_wait(tmp_path: Path, server: Any) -> None:
    with server() as address:
        ended = watched(tmp_path, "online", records=RECORDS * 250, patience=2.0, server=address)
    assert 2.0 <= ended.finish_seconds < 20.0  # W&B itself would try for minutes
    (warning,) = ended.warnings
    for cure in ("run done", "no answer for 2 s", "wandb login", "tracker.mode=offline"):
        assert cure in warning
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not any(KEY.encode() in file.read_bytes() for file in written)
    assert KEY not in warning


def test_the_runs_of_a_pack_do_not_each_wait(tmp_path: Path) -> None:
    with silent_server() as address:
        ended = watched(
            tmp_path, "online", "done", "failed", "preempted", patience=5.0, server=address
        )
    assert 5.0 <= ended.finish_seconds < 15.0
    assert len(ended.warnings) == 3  # each run says so in its own log


def test_a_refusal_is_told_when_it_comes(tmp_path: Path) -> None:
    with closed_port() as address:
        ended = watched(tmp_path, "online", training=1.0, server=address, init_timeout=1.0)
    assert ended.finish_seconds < 30.0
    (warning,) = ended.warnings
    assert "connection refused" in warning


def test_without_a_login_nobody_is_asked_for_one(tmp_path: Path) -> None:
    ended = watched(tmp_path, "online", key=None)
    assert ended.finish_seconds < 30.0
    (warning,) = ended.warnings
    assert "No API key configured" in warning


@pytest.mark.parametrize(
    "tracker", [TrackerConfig(), TrackerConfig(name="wandb", mode="disabled")], ids=str
)
def test_no_tracker_no_sinks(tmp_path: Path, tracker: TrackerConfig) -> None:
    assert track.sinks(tracker, RunFolder(tmp_path / "nowhere")) == []


def test_trackers_are_imported_only_by_a_sink_at_work() -> None:
    names = ("wandb", "tensorboard", "trackio", "mlflow")
    imports = ", ".join(f"lora_exp.track.{name}" for name in names)
    code = f"import sys, {imports}; assert not {{*{names}}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
