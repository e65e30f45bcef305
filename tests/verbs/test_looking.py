"""`show` and `logs`: what they tell of one run."""

from __future__ import annotations

import json
import threading
import time

import pytest
from stores import Store

from lora_exp.verbs import logs as verb

Capture = pytest.CaptureFixture[str]


def test_show_tells_of_the_neighbours(store: Store, capsys: Capture) -> None:
    runs = [store.run("done", seed=seed, lora__r=rank) for seed in (1, 2) for rank in (2, 4, 8)]
    store.grid("mine", runs)
    status, text = store.say(capsys, "show", runs[0].signature)
    assert status == 0
    assert "done: accuracy 0.8000  at epoch 3" in text
    assert "grid mine, with 5 other runs" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["lora.r", "2", "4,", "8,", "2"] in lines
    assert any(line[:2] == ["seed", "1"] and {*"12"} < {*"".join(line)} for line in lines)
    assert not any(line[:1] == ["lora.alpha"] for line in lines), "it is the same in all"
    assert "group: group-of-rte-2" in text
    assert "r: 2\n" in text, "the config"


def test_show_of_a_run_that_failed(store: Store, capsys: Capture) -> None:
    run = store.run("failed", {"reason": "It broke.\nIn two lines."})
    (run.path / "code.patch").write_text("diff")
    text = store.say(capsys, "show", run.name)[1]
    assert "failed: It broke.\nIn two lines." in text
    assert "code.patch" in text


def test_show_of_a_run_with_little_written_down(store: Store, capsys: Capture) -> None:
    run = store.run("queued")
    (run.path / "run.json").write_text(json.dumps({"git": {"commit": "abc", "dirty": True}}))
    text = store.say(capsys, "show", run.name)[1]
    assert "code: abc with uncommitted changes" in text


@pytest.mark.parametrize("content", [None, "", "{"])
def test_runs_and_grids_whose_files_are_lost(
    content: str | None, store: Store, capsys: Capture
) -> None:
    run, other = store.run("failed"), store.run("done")
    store.grid("mine", [run, other])
    names = ("config.yaml", "run.json", "status.json")
    for file in (*(run.path / name for name in names), store.outputs / "grids/mine/grid.json"):
        file.unlink() if content is None else file.write_text(content)
    assert "2 runs: " in store.say(capsys, "status")[1]
    assert "1 run: 1 done" in store.say(capsys, "status", "task=rte")[1]
    assert store.say(capsys, "show", run.signature)[0] == 0
    assert store.say(capsys, "show", other.signature)[0] == 0
    assert store.say(capsys, "report")[0] == 0
    assert "config.yaml: " in store.say(capsys, "retry", "state=queued")[1]


def test_logs(store: Store, capsys: Capture) -> None:
    run = store.run("done")
    assert store.say(capsys, "logs", run.signature)[1] == f"log of {run.name}\n"
    run.log.unlink()
    assert "is done, and has no log yet" in store.say(capsys, "logs", run.signature)[1]


def test_logs_follow_until_the_run_ends(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "LOOK_SECONDS", 0.01)
    run = store.run("running")

    def train() -> None:
        with run.lock():
            held.set()
            for number in range(3):
                time.sleep(0.02)
                with run.log.open("a") as log:
                    log.write(f"line {number}\n")
            run.set_status("preempted")

    held = threading.Event()
    training = threading.Thread(target=train)
    training.start()
    held.wait()
    status, text = store.say(capsys, "logs", run.name, "-f")
    training.join()
    assert status == 0
    assert text.splitlines() == [
        f"log of {run.name}",
        *("line 0", "line 1", "line 2"),
        f"{run.name} is preempted.",
    ]


def test_logs_of_a_lost_run_are_not_followed_for_ever(store: Store, capsys: Capture) -> None:
    run = store.run("running")
    assert f"{run.name} is lost." in store.say(capsys, "logs", run.name, "--follow")[1]
