"""Who is told when a grid has ended, and what: a real webhook on this machine, a real command."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import stores

from lora_exp.grid import detached, notify
from lora_exp.grid.close import Close
from lora_exp.grid.submission import Submission
from lora_exp.runs import files
from lora_exp.runs.grid import Grid
from lora_exp.runs.records import Records

SECRET = "/services/T0/B0/s3cr3t"


class Hook(ThreadingHTTPServer):
    """A webhook as Slack's: keeps what it gets."""

    daemon_threads = True
    status = 200

    def __init__(self) -> None:
        self.messages: list[Any] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{SECRET}"


class Answer(BaseHTTPRequestHandler):
    server: Hook  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        assert (self.path, self.headers["Content-Type"]) == (SECRET, "application/json")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with Hook() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(notify.WEBHOOK, server.address)
        yield server
        server.shutdown()


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Two ranks with two seeds each, and failures."""
    store = stores.Store(tmp_path / "outputs")
    runs = [
        store.run("done", metrics={"accuracy": accuracy}, lora__r=rank, seed=seed)
        for rank, seed, accuracy in ((1, 1, 0.5), (1, 2, 0.6), (8, 1, 0.8), (8, 2, 0.9))
    ]
    runs += [store.run("failed", {"reason": "the loss is nan"}, seed=seed) for seed in (3, 4, 5, 6)]
    return Grid(store.grid("mine", runs, study="a-study"))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("lora_exp"), "propagate", True)
    return caplog


def test_a_webhook_gets_counts_the_best_groups_first_and_failures(grid: Grid, hook: Hook) -> None:
    notify.ended(grid)
    (message,) = hook.messages
    assert message.keys() == {"text"}
    lines = message["text"].splitlines()
    assert lines[0] == ("lora_exp: grid mine (study a-study) has ended. 8 runs: 4 done, 4 failed.")
    table = lines[lines.index("```") + 1 : lines.index("```", 2)]
    assert table[0].split() == ["task", "method", "lora.r", "metric"]
    assert [line.split()[:4] for line in table[1:]] == [
        ["rte", "lora", "8", "accuracy"],
        ["rte", "lora", "1", "accuracy"],
    ]
    assert "85.00\u00a0±\u00a07.07" in table[1]
    assert table[1].endswith("2 seeds")
    failures = [line for line in lines if "failed: the loss is nan" in line]
    assert len(failures) == notify.FAILURES
    assert "and 1 failure more" in lines
    assert "python -m lora_exp report grid=mine" in lines[-1]


def test_an_exit_hook_runs_with_the_text_and_the_numbers(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("GRID", "RUNS", "DONE", "FAILED", "OUTPUTS")
    told = " ".join(f'"$LORA_EXP_{name}"' for name in names)
    monkeypatch.setenv(notify.EXIT_HOOK, f"cat > {tmp_path}/text; echo {told} > {tmp_path}/told")
    notify.ended(grid)
    runs = Records(grid.outputs).runs
    assert (tmp_path / "text").read_text() == notify.message(grid, runs) + "\n"
    assert (tmp_path / "told").read_text() == f"mine 8 4 4 {grid.outputs}\n"


def test_nobody_is_told_if_nobody_wants_to_know(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (notify.WEBHOOK, notify.EXIT_HOOK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(notify, "message", None)
    notify.ended(grid)


def test_the_trouble_of_a_webhook_is_a_warning_without_its_address(
    grid: Grid, hook: Hook, warnings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.status = 404
    notify.ended(grid)
    monkeypatch.setenv(notify.WEBHOOK, f"http://127.0.0.1:9{SECRET}")
    notify.ended(grid)
    monkeypatch.setenv(notify.WEBHOOK, f"nonsense{SECRET}")
    notify.ended(grid)
    said = [record.getMessage() for record in warnings.records]
    assert said[0] == "LORA_EXP_WEBHOOK did not take the message: HTTP status 404."
    assert "refused" in said[1]
    assert len(said) == 3
    assert not any(SECRET in line for line in said)


def test_neither_a_silent_webhook_nor_a_slow_command_holds_the_grid_up(
    grid: Grid, warnings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(notify, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(notify.WEBHOOK, f"http://127.0.0.1:{silent.getsockname()[1]}{SECRET}")
        command = f"sleep 600 & echo $! > {tmp_path}/child; wait"
        monkeypatch.setenv(notify.EXIT_HOOK, command)
        notify.ended(grid)
    said = [record.getMessage() for record in warnings.records]
    assert any("timed out" in line or "no answer for 0.5 s" in line for line in said)
    assert "LORA_EXP_EXIT_HOOK took longer than 0.5 s, and was ended." in said
    status = Path("/proc", (tmp_path / "child").read_text().strip(), "status")
    last = time.monotonic() + 30  # it is killed by then, and ends once it gets the processor

    def ended() -> bool:
        try:
            return "State:\tZ" in status.read_text()
        except OSError:
            return True

    while not ended():
        assert time.monotonic() < last, "its children end with it"
        time.sleep(0.05)


def test_a_command_that_fails_is_a_warning(
    grid: Grid, warnings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notify.EXIT_HOOK, "exit 3")
    notify.ended(grid)
    assert [record.getMessage() for record in warnings.records] == [
        "LORA_EXP_EXIT_HOOK ended with status 3."
    ]


def test_a_grid_in_the_background_tells(
    grid: Grid, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["detached", str(grid.path)])
    detached.main()
    assert len(hook.messages) == 1


def test_the_last_closing_job_tells(
    grid: Grid, hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", stores.commands(tmp_path / "bin", squeue="exit 0", sacct="exit 0"))
    submission = grid.path / "jobs" / "1"
    submission.mkdir(parents=True)
    record = {"runs": [[run.name, None, None] for run in grid.runs[:2]], "settings": {}}
    files.write_json(submission / "submission.json", record | {"progress": [0, 0], "stalled": 0})
    waiting = grid.runs[-1]
    waiting.set_status("queued")
    Close(Submission(submission).path)()
    assert hook.messages == []
    waiting.set_status("failed")
    Close(Submission(submission).path)()
    assert len(hook.messages) == 1


def test_a_grid_on_this_machine_tells_once_and_keeps_the_secret(
    hook: Hook, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notify.EXIT_HOOK, f"cat >> {tmp_path}/told")
    outputs = tmp_path / "outputs"
    given = [f"model.name_or_path={tiny}", f"outputs={outputs}", "train.max_steps=2", "device=cpu"]
    command = [sys.executable, "-m", "lora_exp", "-m", *given, "seed=1,2", "grid=mine"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (message,) = hook.messages
    assert "grid mine has ended. 2 runs: 2 done." in message["text"]
    assert (tmp_path / "told").read_text() == message["text"] + "\n"
    written = [file for file in outputs.rglob("*") if file.is_file()]
    assert written
    assert not any(SECRET.encode() in file.read_bytes() for file in written)
    assert SECRET not in ended.stdout + ended.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert len(hook.messages) == 1, "nothing was trained, and nothing has ended"
