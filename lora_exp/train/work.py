"""A worker: takes runs from a source and trains them, pack after pack, at one workplace."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lora_exp import console
from lora_exp.errors import UserError
from lora_exp.runs.files import is_disk_full
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.lease import Fenced, RunBusy
from lora_exp.train.job import foretell, member, reason, train_pack

if TYPE_CHECKING:
    from lora_exp.train.interruption import Interruption
    from lora_exp.train.run import Run
    from lora_exp.train.workplace import Workplace


class Source(Protocol):
    """Where a worker gets its runs from."""

    def take(self, like: Path | None, number: int) -> list[Path]:
        """Folders of at most `number` runs to train now: such as can be packed with the run `like`,
        if that is given. None are left if there are none."""
        ...

    def ended(self, run: Path, state: str) -> None:
        """Told of each run that was taken: `done`, `failed`, `cancelled`, `preempted`, or `busy` if
        another process trains it."""
        ...


def work(source: Source, device: str) -> None:
    """Take runs until none is left.

    Args:
        source: of runs whose folders have their configs.
        device: `cpu` or `cuda`.

    Raises:
        SystemExit: after a signal, with status 128 + its number; every run is preempted.
    """
    from lora_exp.train.device import choose_device
    from lora_exp.train.interruption import Interruption
    from lora_exp.train.workplace import Workplace

    workplace = Workplace(choose_device(device))
    with Interruption() as stop:
        while not stop.requested and (first := source.take(None, 1)):
            _Shift(first[0], source, workplace, stop).train()
    if stop.requested:
        raise SystemExit(128 + stop.requested)


def _ended(folder: RunFolder) -> str | None:
    """How a run that is not to be trained has ended; it is locked by this process.

    One that failed was given to a worker before: planning, or `retry`, queues it anew if it is to
    be trained again.
    """
    if folder.result is not None:
        return "done"
    status = folder.status
    if folder.cancel_requested and status["state"] != "cancelled":
        folder.set_status("cancelled", **folder.progress)
    state = folder.status["state"]
    return state if state in ("failed", "cancelled") else None


class _Shift:
    """A pack's time at a workplace: its runs, and those that take their places."""

    def __init__(
        self, first: Path, source: Source, workplace: Workplace, stop: Interruption
    ) -> None:
        self.source, self.workplace, self.stop = source, workplace, stop
        self._like, self._size = first, 1
        self._open: dict[Run, ExitStack] = {}

    def train(self) -> None:
        """Until all have ended."""
        runs = self._enter([self._like])
        if not runs:
            return
        takes = foretell(runs[0])
        if runs[0].own is not None and takes is not None:
            from lora_exp.train.memory import pack_size

            self._size = pack_size(runs[0], takes)
        if self._size > 1:
            runs += self._enter(self.source.take(self._like, self._size - 1))
        train_pack(runs, self.stop, self._more)
        self._close()

    def _more(self) -> Sequence[Run]:
        """Runs for the places that are free."""
        self._close()
        free = self._size - len(self._open)
        joining: list[Run] = []
        while self._size > 1 and free > 0 and not self.stop.requested:
            taken = self.source.take(self._like, free)
            if not taken:
                break
            joining += self._enter(taken)
            free = self._size - len(self._open)
        return joining

    def _enter(self, folders: Sequence[Path]) -> list[Run]:
        """Make runs ready; one that cannot be is failed, or left to the process that trains it."""
        entered = []
        for path in folders:
            folder, stack = RunFolder(path), ExitStack()
            # The beginning of its name by which `logs` and the like find it.
            name = folder.name[: len(folder.name) - len(folder.signature) + 4]
            logger = console.log_of(folder.signature)
            try:
                stack.enter_context(folder.lock())
                if (ended := _ended(folder)) is not None:
                    stack.close()
                    folder.settle()
                    self.source.ended(path, ended)
                    continue
                stack.enter_context(console.also_to(folder.log, logger))
                # It may have been moved since it was queued.
                config = replace(folder.config_to_train, outputs=str(folder.path.parent.parent))
                backbone, data = self.workplace.prepare(config)
                run = member(config, folder, self.workplace, backbone, data, name, None)
            except RunBusy:
                self.source.ended(path, "busy")
                continue
            except Exception as error:
                if is_disk_full(error):
                    stack.close()
                    self.source.ended(path, "preempted")
                    continue
                trace = None if isinstance(error, UserError) else error
                told = logging.LoggerAdapter(logger, {"run": name})
                told.error("failed: %s", reason(error), exc_info=trace)
                attempt = folder.status.get("attempt", 0) + 1
                # Where nothing can be written it is not written there.
                with suppress(OSError, Fenced):
                    folder.set_status("failed", reason=reason(error), attempt=attempt)
                stack.close()
                self.source.ended(path, "failed")
                continue
            self._open[run] = stack
            entered.append(run)
        return entered

    def _close(self) -> None:
        """See off the runs that have ended."""
        for run in [run for run in self._open if run.state != "running"]:
            self._open.pop(run).close()
            self.source.ended(run.folder.path, run.state)
