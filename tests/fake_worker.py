"""A worker that trains nothing: what happens to its runs stands in a file of their folders.

`lora_exp.grid.worker.main` is replaced by this in tests of the coordinator. No torch, no model.
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection

from lora_exp.grid.devices import Device
from lora_exp.grid.worker import Remote
from lora_exp.runs.folder import RunFolder

RESULT = {"metrics": {"accuracy": 1.0}}


def main(connection: Connection, device: Device, quiet: bool) -> None:
    """Take packs until none is left."""
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(number))
    source = Remote(connection)
    while not stopped and (taken := source.take(None, 1)):
        taken += source.take(taken[0], 7)
        for path in taken:
            with (path / "given").open("a") as file:
                file.write(f"{os.getpid()} {len(taken)}\n")
        for path in taken:
            source.ended(path, _train(RunFolder(path), stopped))
    if stopped:
        raise SystemExit(143)


def stillborn(connection: Connection, device: Device, quiet: bool) -> None:
    """A worker that dies before it asks for a run."""
    raise SystemExit(3)


def _train(run: RunFolder, stopped: list[int]) -> str:
    behaviour = (run.path / "behaviour").read_text()
    first = len((run.path / "given").read_text().splitlines()) == 1
    if behaviour == "kills" or (behaviour == "kills once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "leaves":
        os._exit(7)
    if behaviour == "dies done":
        run.finish(RESULT)
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "waits" and first:
        while not stopped:
            time.sleep(0.01)
    while behaviour == "hangs":
        time.sleep(1)
    if stopped or behaviour == "full":
        run.set_status("preempted", attempt=1)
        return "preempted"
    if behaviour in ("failed", "busy"):
        run.set_status("failed", reason="no reason")
        return behaviour
    run.finish(RESULT)
    return "done"
