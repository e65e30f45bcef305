"""`cancel`, `retry` and `clean`: what they change, what they leave alone, and what they say."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import stores
from stores import Store

from lora_exp.grid import local, slurm
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid

Capture = pytest.CaptureFixture[str]
Trained = list[tuple[str, list[str], dict[str, str]]]


ADDED = "+hydra.launcher.additional.reservation=ours"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """What was given to be trained here: the grid, the runs, their states at that moment."""
    given: Trained = []

    def train_runs(grid: Grid, runs: Sequence[RunFolder]) -> dict[str, str]:
        states = {run.signature.lstrip("0"): run.status["state"] for run in runs}
        given.append((grid.name, [*states], states))
        for run in runs:
            run.set_status("failed", reason="again")
        return {}

    monkeypatch.setattr(local, "train_runs", train_runs)
    return given


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_a_filter_must_be_given(verb: str, store: Store, capsys: Capture) -> None:
    store.run("queued")
    store.run("failed")
    status, text = store.say(capsys, verb)
    assert status == 2
    assert f"{verb}: say which runs" in text
    assert store.states() == {"1": "queued", "2": "failed"}


def test_cancel(store: Store, capsys: Capture) -> None:
    queued = store.run("queued", {"step": 3, "total_steps": 9})
    running = store.run("running")
    store.run("running")  # its process is gone
    for state in ("done", "failed", "preempted"):
        store.run(state)
    store.run("queued", task__name="mrpc")
    with running.lock():
        status, text = store.say(capsys, "cancel", "task=rte")
    assert status == 0
    assert "Cancelled: 3 runs." in text
    assert "Being trained, and saved and ended in some seconds: 1 run." in text
    assert "Ended before, and left as they are: 2 runs." in text
    assert list(store.states().values()).count("cancelled") == 3
    assert store.states()["2"] == "running"
    assert running.cancel_requested
    assert not queued.cancel_requested
    assert queued.status["step"] == 3, "it can go on from there"
    assert store.states()["7"] == "queued"
    status, text = store.say(capsys, "cancel", "task=rte", "state=queued")
    assert status == 2
    assert "None of 7 runs is meant by task=rte state=queued." in text


def test_jobs_are_cancelled_when_nothing_is_left_of_their_grid(
    store: Store, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = "echo '7_[0-3] PENDING Resources'; echo '8 PENDING Dependency'; echo '9 RUNNING None'"
    path = stores.commands(tmp_path / "slurm", squeue=squeue, scancel="exit 0")
    monkeypatch.setenv("PATH", path)
    first, second = store.run("queued", seed=1), store.run("queued", seed=2)
    store.grid("g", [first, second], "7", "8", "9")
    calls = tmp_path / "slurm" / "scancel.calls"
    store.say(capsys, "cancel", "seed=1")
    assert not calls.exists(), "the other run still wants them"
    text = store.say(capsys, "cancel", "seed=2")[1]
    assert calls.read_text() == "--state=PENDING 7 8\n"
    assert "SLURM job 7 of grid g" in text


def test_retry_here(store: Store, capsys: Capture, trained: Trained) -> None:
    runs = {state: store.run(state) for state in ("failed", "cancelled", "preempted", "running")}
    others = [store.run("done"), store.run("queued")]
    busy = store.run("running")
    runs["cancelled"].request_cancel()
    store.grid("mine", [*runs.values(), *others, busy])
    with busy.lock():
        status, text = store.say(capsys, "retry", "task=rte")
    assert trained == [("mine", ["1", "2", "3", "4"], dict.fromkeys("1234", "queued"))]
    assert not runs["cancelled"].cancel_requested
    assert store.states()["6"] == "queued"
    assert store.states()["7"] == "running"
    assert "Queued again: 4 runs." in text
    assert status == 1
    assert "4 runs failed again." in text


def test_retry_of_queued_runs_only_if_they_are_named(
    store: Store, capsys: Capture, trained: Trained
) -> None:
    store.grid("mine", [store.run("queued")])
    assert "There is nothing to retry" in store.say(capsys, "retry", "task=rte")[1]
    store.say(capsys, "retry", "state=queued")
    assert [runs for _, runs, _ in trained] == [["1"]]


def test_retry_of_runs_without_a_grid_makes_one(
    store: Store, capsys: Capture, trained: Trained
) -> None:
    store.run("failed")
    store.say(capsys, "retry", "state=failed")
    (name, runs, _), *_ = trained
    assert runs == ["1"]
    record = json.loads((store.outputs / "grids" / name / "grid.json").read_text())
    assert record["launcher"] == {"name": "local"}


def test_retry_leaves_to_slurm_what_goes_on_there(
    store: Store,
    capsys: Capture,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = stores.commands(tmp_path / "slurm", squeue="echo '7_[1] PENDING Resources'")
    monkeypatch.setenv("PATH", path)
    store.grid("g", [store.run("preempted")], "7")
    text = store.say(capsys, "retry", "task=rte")[1]
    assert "Left to their SLURM jobs, which go on: 1 run." in text
    assert store.states() == {"1": "preempted"}
    assert trained == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hydra.launcher.gpu=2", "hydra.launcher.gpu: there is no such setting. Did you mean gpus"),
        ("hydra.launcher.gpus=two", "hydra.launcher.gpus: Value 'two'"),
        ("hydra/launcher=locl", "hydra/launcher=locl: Did you mean local?"),
        ("hydra/launcher=basic", "retry takes hydra/launcher=local or slurm."),
    ],
)
def test_retry_refuses_unknown_settings_before_anything_is_queued(
    setting: str, message: str, store: Store, capsys: Capture, trained: Trained
) -> None:
    store.grid("g", [store.run("failed")], "7", launcher={"name": "slurm", "gpus": 1})
    status, text = store.say(capsys, "retry", "state=failed", setting)
    assert status == 2
    assert message in text
    assert store.states() == {"1": "failed"}


def test_retry_with_another_launcher(store: Store, capsys: Capture, trained: Trained) -> None:
    path = store.grid("g", [store.run("failed"), store.run("done")], "7", command="first")
    store.say(capsys, "retry", "state=failed", "hydra/launcher=local")
    assert [name for name, _, _ in trained] == ["g"]
    record = json.loads((path / "grid.json").read_text())
    assert record["launcher"] == {"name": "local"}, "how it goes on"
    assert record["command"] == "first"
    assert len(record["runs"]) == 2


def test_retry_on_slurm_with_other_settings(
    store: Store, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PATH", stores.commands(tmp_path / "slurm", sbatch="exit 1", squeue="exit 0")
    )
    given = []
    monkeypatch.setattr(slurm, "submit", lambda *a, **k: given.append((a, k)) or ["8"])
    store.grid("g", [store.run("failed")], "7", launcher={"name": "slurm", "partition": "gpu"})
    status, text = store.say(capsys, "retry", "state=failed", "hydra.launcher.gpus=2", ADDED)
    assert status == 0, text
    (((grid, runs, settings), more),) = given
    assert (grid.name, len(runs)) == ("g", 1)
    assert (settings.partition, settings.gpus) == ("gpu", 2)
    assert settings.additional == {"reservation": "ours"}
    assert (more["code"] / "lora_exp" / "verbs").is_dir(), "the code of now"
    assert store.states() == {"1": "queued"}


def test_retry_without_sbatch_queues_nothing(
    store: Store, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    store.grid("g", [store.run("failed")], "7")
    status, text = store.say(capsys, "retry", "state=failed")
    assert (status, "no sbatch here" in text) == (2, True)
    assert store.states() == {"1": "failed"}


# -- clean -----------------------------------------------------------------------------------------


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def left(store: Store) -> set[str]:
    return {
        f"{folder}/{path.name}"
        for folder in ("runs", "superseded", "snapshots", "cache")
        for path in (store.outputs / folder).glob("*")
    }


def filled(store: Store) -> dict[str, RunFolder]:
    """Runs in every state, a superseded one, a snapshot that is needed and one that is not."""
    runs = {state: store.run(state) for state in ("done", "failed", "cancelled", "preempted")}
    store.run("done", task__name="mrpc").supersede()
    store.run("failed", task__name="mrpc")
    for name in ("kept", "stale"):
        (store.outputs / "snapshots" / name).mkdir(parents=True)
    (store.outputs / "cache" / "tokens").mkdir(parents=True)
    (store.outputs / "cache" / "tokens" / "x").write_bytes(b"0" * 2048)
    return runs


@pytest.mark.parametrize("said", ["", "no\n", "y\n", "\n"])
def test_nothing_is_cleaned_without_a_yes(
    said: str, store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = filled(store)
    before = left(store)
    answer(monkeypatch, said)
    status, text = store.say(capsys, "clean")
    assert status == 0
    assert left(store) == before
    assert "Nothing was removed." in text
    assert runs["failed"].name in text
    assert "snapshots/stale" in text
    assert "snapshots/kept" not in text
    assert "2.0 KiB" in text


def test_clean(store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = filled(store)
    answer(monkeypatch, "yes\n")
    text = store.say(capsys, "clean")[1]
    kept = {f"runs/{runs[state].name}" for state in ("done", "preempted")}
    assert left(store) == kept | {"snapshots/kept"}
    assert "Removed: 6 folders." in text


def test_clean_keeps_the_code_of_jobs_that_go_on(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = store.grid("g", [store.run("queued", task__name="cola")], snapshot="of-grid")
    submission = grid / "jobs" / "1"
    submission.mkdir(parents=True)
    record = {"code": str(store.outputs / "snapshots" / "of-jobs"), "runs": []}
    (submission / "submission.json").write_text(json.dumps(record))
    for name in ("of-grid", "of-jobs", "stale"):
        (store.outputs / "snapshots" / name).mkdir(parents=True)
    answer(monkeypatch, "yes\n")
    store.say(capsys, "clean")
    assert {path.name for path in (store.outputs / "snapshots").iterdir()} == {"of-grid", "of-jobs"}


def test_clean_leaves_code_that_a_run_needs_meanwhile(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.outputs / "snapshots" / "kept").mkdir(parents=True)

    class Answer(io.StringIO):
        def readline(self, size: int = -1) -> str:
            store.run("queued")
            return "yes\n"

    monkeypatch.setattr(sys, "stdin", Answer())
    assert "kept: left, since it is needed now" in store.say(capsys, "clean")[1]
    assert (store.outputs / "snapshots" / "kept").exists()


def test_clean_with_a_filter(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    before = left(store)
    answer(monkeypatch, "yes\n")
    store.say(capsys, "clean", "task=mrpc")
    assert all("mrpc" in name for name in before - left(store))
    assert len(before - left(store)) == 2


def test_clean_leaves_what_was_queued_again_meanwhile(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = store.run("failed"), store.run("failed")

    class Answer(io.StringIO):
        def readline(self, size: int = -1) -> str:
            first.set_status("queued")
            return "yes\n"

    monkeypatch.setattr(sys, "stdin", Answer())
    text = store.say(capsys, "clean")[1]
    assert store.states() == {"1": "queued"}
    assert "left, since it is queued now" in text
    assert not second.path.exists()


def test_nothing_to_clean(store: Store, capsys: Capture) -> None:
    store.run("done")
    assert "There is nothing to clean" in store.say(capsys, "clean")[1]
