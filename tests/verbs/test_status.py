"""`status`: what it tells of runs, grids and SLURM, and that it changes nothing."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import stores
from stores import Store

from lora_exp.verbs import status as verb

Capture = pytest.CaptureFixture[str]


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


def slurm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, sacct: str = "exit 1"
) -> Path:
    said = "\n".join(f"echo '{line}'" for line in squeue.splitlines())
    monkeypatch.setenv("PATH", stores.commands(folder / "slurm", squeue=said, sacct=sacct))
    return folder / "slurm"


def test_runs_one_by_one(store: Store, capsys: Capture) -> None:
    done = store.run("done", {"step": 20, "total_steps": 20})
    failed = store.run("failed", {"reason": "CUDA out of memory\nand more"})
    queued = store.run("queued")
    with store.run("running", {"step": 10, "total_steps": 40, "seconds": 600.0}).lock():
        status, text = store.say(capsys, "status")
    assert status == 0
    assert "20/20" in line_of(text, done.name)
    assert "accuracy 0.8000" in line_of(text, done.name)
    assert "loss" not in text
    assert "CUDA out of memory" in line_of(text, failed.name)
    assert "and more" not in text
    assert "queued" in line_of(text, queued.name)
    running = line_of(text, "rte-tiny-lora-r8-qv-seed1-000000000004")
    assert "running" in running
    assert "10/40" in running
    assert re.search(r"\b(29|30)\.\d min", running), "what is left, at the pace so far"
    assert "4 runs: 1 queued, 1 running, 1 done, 1 failed" in text


def test_the_last_evaluation_of_a_run_that_goes_on(store: Store, capsys: Capture) -> None:
    run = store.run("preempted", {"step": 3})
    lines = [
        {"step": 1, "split": "validation", "accuracy": 0.1},
        {"step": 2, "split": "validation", "loss": 1.0, "accuracy": 0.25, "seconds": 0.5},
        {"step": 3, "split": "train", "loss": 0.5},
    ]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step')
    assert "accuracy 0.2500  " in line_of(store.say(capsys, "status")[1], run.name)


def test_a_filter_narrows(store: Store, capsys: Capture) -> None:
    store.run(task__name="mrpc")
    store.run()
    text = store.say(capsys, "status", "task=mrpc")[1]
    assert "mrpc-" in text
    assert "rte-" not in text
    status, text = store.say(capsys, "status", "task=mrpcc")
    assert status == 2
    assert "Did you mean mrpc?" in text
    assert (
        "None of 2 runs is meant by state=failed." in store.say(capsys, "status", "state=failed")[1]
    )


def test_many_runs_are_summed_up(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "LISTED", 3)
    monkeypatch.setattr(verb, "FAILURES_LISTED", 1)
    runs = [store.run("done", seed=seed) for seed in (1, 2)]
    runs += [store.run("failed", {"reason": "it broke"}, lora__r=2) for _ in range(2)]
    store.grid("mine", runs[:3])
    text = store.say(capsys, "status")[1]
    assert line_of(text, "mine").split() == ["mine", "3", "2", "1"]
    assert line_of(text, "(none)").split() == ["(none)", "1", "1"]
    assert text.count("it broke") == 1
    assert "and 1 more: status state=failed,lost" in text
    assert runs[0].name not in text
    assert runs[0].name in store.say(capsys, "status", "state=done")[1]


def test_by_group_and_state(store: Store, capsys: Capture) -> None:
    for seed in (1, 2, 3):
        store.run("done", seed=seed)
    store.run("queued", lora__r=2)
    by_group = store.say(capsys, "status", "--by", "group")[1]
    assert line_of(by_group, "rte-tiny-lora-r8-qv group-of-rte-8").split()[-2:] == ["3", "3"]
    by_state = store.say(capsys, "status", "--by", "state")[1]
    assert line_of(by_state, "done").split() == ["done", "3"]
    status, text = store.say(capsys, "status", "--by", "stat")
    assert (status, "Did you mean state?" in text) == (2, True)


def test_a_run_whose_process_is_gone_is_lost(store: Store, capsys: Capture) -> None:
    run = store.run("running", {"pid": 4711, "host": "there"})
    text = store.say(capsys, "status")[1]
    assert "lost" in line_of(text, run.name)
    assert "process 4711 on there is gone" in text
    assert store.states() == {"1": "running"}, "status changes no state"
    assert run.name in store.say(capsys, "status", "state=lost")[1]


def test_a_run_whose_process_is_gone_before_it_heeds_a_cancel_is_cancelled(
    store: Store, capsys: Capture
) -> None:
    run = store.run("running", {"pid": 4711, "host": "there"})
    run.request_cancel()
    assert "cancelled" in line_of(store.say(capsys, "status")[1], run.name)
    assert "nothing to retry" in store.say(capsys, "retry", "state=lost")[1]


@pytest.mark.parametrize(
    ("state", "squeue", "sacct", "told", "reason"),
    [
        ("running", "7_0 NODE_FAIL NodeDown", "exit 1", "lost", "job 7_0: NODE_FAIL"),
        ("running", "", "exit 1", "lost", "job 7_0: no longer in the queue"),
        ("running", "", "echo '7_0|CANCELLED by 0'", "lost", "job 7_0: CANCELLED"),
        ("running", "7_0 PENDING BeginTime", "exit 1", "preempted", "to start again (BeginTime)"),
        ("running", "7_0 RUNNING None", "exit 1", "running", ""),
        ("queued", "7_[0-3%2] PENDING Resources", "exit 1", "queued", "job 7 waits: Resources"),
        ("queued", "7_0 RUNNING None\n7_[1] PENDING Priority", "exit 1", "queued", ""),
        ("queued", "7_0 COMPLETED None", "exit 1", "lost", "no job of grid g is left"),
        ("preempted", "7_0 FAILED NonZeroExitCode", "exit 1", "lost", "no job of grid g is left"),
        ("failed", "7_0 FAILED NonZeroExitCode", "exit 1", "failed", ""),
    ],
)
def test_what_slurm_says(
    state: str,
    squeue: str,
    sacct: str,
    told: str,
    reason: str,
    store: Store,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = slurm(tmp_path, monkeypatch, squeue, sacct)
    run = store.run(state, {"job": "7_0" if state == "running" else None})
    others = [store.run("queued") for _ in range(3)]
    store.grid("g", [run, *others], "7")
    with run.lock():
        line = line_of(store.say(capsys, "status")[1], run.name)
    assert told in line.split()
    assert line.endswith(reason)
    assert len((calls / "squeue.calls").read_text().splitlines()) == 1
    assert store.states()["1"] == state


def test_a_run_that_is_also_of_a_grid_on_this_machine_is_not_lost(
    store: Store, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(tmp_path, monkeypatch, "7_0 COMPLETED None")
    runs = [store.run("queued"), store.run("queued")]
    store.grid("on-slurm", runs, "7")
    store.grid("here", runs[:1])
    text = store.say(capsys, "status")[1]
    assert "queued" in line_of(text, runs[0].name)
    assert "lost" in line_of(text, runs[1].name)


def test_slurm_is_not_asked_where_it_has_nothing_to_say(
    store: Store, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = slurm(tmp_path, monkeypatch, "")
    store.grid("local", [store.run("queued")])
    store.grid("ended", [store.run("done"), store.run("failed")], "7")
    store.say(capsys, "status")
    assert not (calls / "squeue.calls").exists()


def test_without_slurm_states_are_as_written(store: Store, capsys: Capture) -> None:
    run = store.run("queued")
    store.grid("g", [run], "7")
    assert "queued" in line_of(store.say(capsys, "status")[1], run.name).split()


def test_watch_ends_with_the_runs(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.run("queued")
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        run.set_status("failed", reason="it broke")

    monkeypatch.setattr(time, "sleep", sleep)
    status, text = store.say(capsys, "status", "--watch")
    assert status == 0
    assert "it broke" in text
    assert len(slept) == 1


def test_broken_files_do_not_break_it(store: Store, capsys: Capture) -> None:
    run = store.run("queued")
    (run.path / "status.json").write_text("")
    (run.path / "run.json").unlink()
    assert "queued" in line_of(store.say(capsys, "status")[1], run.name)
