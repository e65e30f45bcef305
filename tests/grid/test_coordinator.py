"""Workers that die, signals and packs, with processes that train nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fake_worker
import pytest

from lora_exp.grid import coordinator, worker
from lora_exp.grid.coordinator import Coordinator
from lora_exp.grid.devices import Device
from lora_exp.grid.queue import Queue, Ticket
from lora_exp.runs.folder import RunFolder

Grid = Callable[..., dict[str, str]]


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """Train runs that behave as said; returns their states at the end."""
    monkeypatch.setattr(worker, "main", fake_worker.main)

    def train(key: str | None = None, workers: int = 2, **behaviours: str) -> dict[str, str]:
        tickets = []
        for name, behaviour in behaviours.items():
            folder = RunFolder(tmp_path / "runs" / name)
            folder.path.mkdir(parents=True)
            (folder.path / "behaviour").write_text(behaviour.replace("_", " "))
            folder.set_status("queued", attempt=0)
            tickets.append(Ticket(folder.path, key))
        coordinator = Coordinator(Queue(tickets), [Device("cpu")] * workers)
        coordinator.run()
        assert not coordinator.queue.workers
        return {ticket.path.name: ticket.state for ticket in tickets}

    return train


def given(folder: Path, name: str) -> list[int]:
    """How many runs were in the packs that a run was in, in order."""
    lines = (folder / "runs" / name / "given").read_text().splitlines()
    return [int(line.split()[1]) for line in lines]


def test_every_run_is_trained_by_a_warm_worker(grid: Grid, tmp_path: Path) -> None:
    names = [f"run{number}" for number in range(5)]
    assert grid(**dict.fromkeys(names, "fine")) == dict.fromkeys(names, "done")
    processes = {(tmp_path / "runs" / name / "given").read_text().split()[0] for name in names}
    assert 1 <= len(processes) <= 2


def test_a_run_for_which_there_is_no_room_is_given_once_more_and_then_left(
    grid: Grid, tmp_path: Path
) -> None:
    assert grid(a="full", b="fine") == {"a": "preempted", "b": "done"}
    assert len(given(tmp_path, "a")) == 2


def test_a_killed_worker_is_replaced_and_its_run_given_again(grid: Grid, tmp_path: Path) -> None:
    assert grid(a="kills once", b="fine") == {"a": "done", "b": "done"}
    assert given(tmp_path, "a") == [1, 1]


@pytest.mark.parametrize(
    ("behaviour", "how"), [("kills", "SIGKILL, out of memory?"), ("leaves", "exit status 7")]
)
def test_a_run_that_always_kills_its_worker_fails_and_the_others_go_on(
    behaviour: str, how: str, grid: Grid, tmp_path: Path
) -> None:
    assert grid(a="fine", b=behaviour, c="fine") == {"a": "done", "b": "failed", "c": "done"}
    assert given(tmp_path, "b") == [1, 1]
    status = RunFolder(tmp_path / "runs" / "b").status
    assert status["state"] == "failed"
    assert status["reason"].startswith(
        f"Its worker died 2 times, at last with this run alone: {how}. See "
    )


def test_company_in_a_crash_is_cleared(grid: Grid, tmp_path: Path) -> None:
    ended = grid("key", workers=1, a="fine", b="kills", c="fine")
    assert ended == {"a": "done", "b": "failed", "c": "done"}
    assert given(tmp_path, "a") == [3]
    assert given(tmp_path, "b") == [3, 1]
    assert given(tmp_path, "c") == [3, 1]


def test_a_run_that_was_done_when_its_worker_died_is_done(grid: Grid, tmp_path: Path) -> None:
    assert grid(a="dies done") == {"a": "done"}
    assert given(tmp_path, "a") == [1]


def test_failed_and_busy_runs_are_what_they_are(grid: Grid) -> None:
    assert grid(a="failed", b="busy") == {"a": "failed", "b": "busy"}


def test_workers_that_cannot_start_end_the_grid(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "main", fake_worker.stillborn)
    assert grid(a="fine", b="fine") == {"a": "pending", "b": "pending"}


def test_a_worker_that_was_stopped_by_somebody_else_is_replaced(grid: Grid, tmp_path: Path) -> None:
    def stop() -> None:
        os.kill(int(wait_for(tmp_path / "runs" / "a" / "given").split()[0]), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert grid(a="waits") == {"a": "done"}
    assert given(tmp_path, "a") == [1, 1]


def test_a_signal_preempts_and_what_follows_at_once_is_the_same(grid: Grid, tmp_path: Path) -> None:
    def stop() -> None:
        wait_for(tmp_path / "runs" / "a" / "given")
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    assert grid(workers=1, a="waits", b="fine") == {"a": "preempted", "b": "pending"}
    assert RunFolder(tmp_path / "runs" / "a").status["state"] == "preempted"


def test_a_second_signal_stops_at_once(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "ONE_SIGNAL_SECONDS", 0.1)

    def stop() -> None:
        wait_for(tmp_path / "runs" / "a" / "given")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert grid(a="hangs") == {"a": "given"}


def test_a_run_that_another_process_holds_is_not_called_failed(grid: Grid, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    with folder.lock():
        assert grid(a="kills") == {"a": "busy"}
        assert folder.status["state"] == "queued"


def test_nothing_heavy_is_imported() -> None:
    import subprocess

    code = "import sys, lora_exp.grid.local; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def wait_for(path: Path) -> str:
    """A file's content, once it has one."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()
