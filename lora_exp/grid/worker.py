"""A worker: a process that loads the backbone once and trains run after run, pack after pack."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path

from lora_exp import console
from lora_exp.grid import devices
from lora_exp.grid.devices import Device


class Remote:
    """The coordinator's queue, as the worker sees it; empty once the coordinator is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def take(self, like: Path | None, number: int) -> list[Path]:
        """Runs to train; see `lora_exp.grid.queue.Queue.take`."""
        try:
            self._connection.send(("take", like, number))
            return self._connection.recv()
        except (EOFError, OSError):
            return []

    def ended(self, run: Path, state: str) -> None:
        """Tell how a run ended: done, failed, preempted or busy."""
        with suppress(OSError):
            self._connection.send(("ended", run, state))


def main(connection: Connection, device: Device, quiet: bool) -> None:
    """Train until nothing is left or a signal comes; the target of a spawned process.

    Args:
        connection: to the coordinator.
        device: to train on.
        quiet: its lines go to the logs of the runs alone.
    """
    # Ctrl-C and a closed terminal reach the whole process group; the coordinator, or its end, says
    # when to save. From `work` on, Ctrl-C is the same request.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    atexit.register(gc.freeze)  # as in __main__.py
    os.environ.update(device.environment)
    console.set_up(alone=False)
    console.console.quiet = quiet
    threading.Thread(target=_leave_with_parent, daemon=True).start()

    from lora_exp.train.work import work

    with devices.held(device):
        work(Remote(connection), device.kind)


def _leave_with_parent() -> None:
    """Ask this process to save and leave once the coordinator is no more."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        print("lora_exp: the command that started this worker is gone.", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
