"""The coordinator of a device's or a node's workers: hands them runs, replaces those that die."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from lora_exp.grid import worker
from lora_exp.grid.devices import Device
from lora_exp.grid.queue import CRASHES, Queue, Ticket
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.lease import RunBusy

log = logging.getLogger("lora_exp")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
ONE_SIGNAL_SECONDS = 1.0
"""Signals that follow so closely are one: a terminal and a wrapper may both deliver it."""
LOOK_SECONDS = 0.2
"""Between two looks whether a signal came."""
START_ATTEMPTS = 2
"""A device whose workers died so often before they asked for a run is given up."""


@dataclass(eq=False)
class _Worker:
    """A process, as the coordinator sees it."""

    number: int
    device: int
    process: SpawnProcess
    connection: Connection
    asked: bool = False
    """It has got as far as to ask for a run."""


class Coordinator:
    """Answers the workers' requests, and replaces those that die."""

    def __init__(
        self, queue: Queue, found: Sequence[Device], look: Callable[[], None] | None = None
    ) -> None:
        """
        Args:
            queue: what to train.
            found: the devices, one worker each.
            look: shows where the runs stand, called every now and then; the workers then keep
                their lines to the logs.
        """
        self.queue = queue
        self._devices = found
        self._look = look
        self._stillborn: Counter[int] = Counter()
        self._workers: list[_Worker] = []
        self._numbers = count(1)
        self._signals: list[tuple[signal.Signals, float]] = []
        self._draining = False

    @property
    def stopped(self) -> signal.Signals | None:
        """The signal that asked to stop, if any."""
        return self._signals[0][0] if self._signals else None

    def run(self) -> None:
        """Until every run has ended, or after a signal every worker.

        The first signal has every run saved; a second one stops at once.
        """
        with self._listening():
            try:
                self._start()
                while self._workers:
                    self._heed()
                    for ready in self._ready():
                        self._answer(ready)
                    for dead in [one for one in self._workers if one.process.exitcode is not None]:
                        self._bury(dead)
                    self._start()
                    if self._look is not None:
                        self._look()
            finally:
                for one in self._workers:  # only if something here went wrong
                    one.process.kill()

    def _start(self) -> None:
        """A worker on each free device, while there are runs that nobody is about to take."""
        if self._signals:
            return
        busy = {one.device for one in self._workers}
        starting = sum(not one.asked for one in self._workers)
        for device, what in enumerate(self._devices):
            usable = device not in busy and self._stillborn[device] < START_ATTEMPTS
            if usable and len(self.queue.pending) > starting:
                context = multiprocessing.get_context("spawn")
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=worker.main, args=(theirs, what, self._look is not None)
                )
                process.start()
                theirs.close()  # so that the worker's end is the only one
                one = _Worker(next(self._numbers), device, process, ours)
                self._workers.append(one)
                self.queue.workers.add(one.number)
                starting += 1

    def _ready(self) -> list[_Worker]:
        """The workers that have said something; waits a moment for one to speak or to die."""
        ends = [one.connection for one in self._workers if not one.connection.closed]
        sentinels = [one.process.sentinel for one in self._workers]
        found = wait([*ends, *sentinels], timeout=LOOK_SECONDS)
        return [one for one in self._workers if one.connection in found]

    def _answer(self, one: _Worker) -> None:
        """Take one message of a worker, and answer it."""
        try:
            kind, *details = one.connection.recv()
        except (EOFError, OSError):
            one.connection.close()  # it is ending
            return
        if kind == "ended":
            self._ended(*details)
            return
        one.asked = True
        like, number = details
        granted = [] if self._signals else self.queue.take(one.number, like, number)
        try:
            one.connection.send(granted)
        except OSError:
            for path in granted:
                self.queue.give_back(path)

    def _ended(self, path, state: str) -> None:
        if state == "preempted" and not self._signals:
            # Somebody stopped that worker, or its disk is full, but the grid goes on.
            self.queue.came_back(path, RunFolder(path).status.get("pack"))
        else:
            self.queue.ended(path, state)

    def _bury(self, dead: _Worker) -> None:
        """Take a dead worker's last words, and give again what it had."""
        while not dead.connection.closed and dead.connection.poll():
            self._answer(dead)
        dead.connection.close()
        self._workers.remove(dead)
        how = _described(dead.process.exitcode or 0)
        if self._signals:
            self.queue.workers.discard(dead.number)
            return
        if not dead.asked:
            self._stillborn[dead.device] += 1
            log.error("A worker could not be started (%s).", how)
        for ticket in self.queue.died(dead.number):
            self._lost(ticket, how)

    def _lost(self, ticket: Ticket, how: str) -> None:
        """See what became of a run whose worker died."""
        folder = RunFolder(ticket.path)
        if folder.result is not None:
            folder.settle()
            self.queue.ended(ticket.path, "done")
        elif ticket.state != "failed":
            log.warning("%s: its worker died (%s). It is given again, alone.", folder.name, how)
        else:
            reason = f"Its worker died {CRASHES} times, at last with this run alone: {how}."
            log.error("%s: %s", folder.name, reason)
            try:
                with folder.lock():
                    folder.set_status(
                        "failed", **folder.progress, reason=f"{reason} See {folder.log}."
                    )
            except RunBusy:
                self.queue.ended(ticket.path, "busy")

    def _heed(self) -> None:
        """Do what the signals that came ask for."""
        if not self._signals:
            return
        (first, since), (_, latest) = self._signals[0], self._signals[-1]
        if not self._draining:
            self._draining = True
            log.warning("%s: every run is saved. A second one stops at once.", first.name)
            for one in self._workers:
                one.process.terminate()
        elif latest - since > ONE_SIGNAL_SECONDS:
            for one in self._workers:
                one.process.kill()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Meanwhile, signals are only noted."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append((signal.Signals(number), time.monotonic()))

        former = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def _described(exitcode: int) -> str:
    """How a process ended, for people."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}, out of memory?" if name == "SIGKILL" else name
