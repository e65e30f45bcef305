"""A tracker as a sink: everything of it happens in a thread that no run waits for."""

from __future__ import annotations

import logging
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, ClassVar

from lora_exp import track
from lora_exp.errors import one_line
from lora_exp.runs.config import TrackerConfig
from lora_exp.track import Line, RunInfo

FINISH_SECONDS = 30.0
"""How long `finish` waits for a tracker; one on this machine takes seconds at most."""
IMPATIENT_SECONDS = 2.0
"""How long it waits once the tracker has let this process wait in vain, until it is back."""

log = logging.getLogger("lora_exp")


class Background:
    """One run at one tracker.

    The tracker, its import included, works in a daemon thread that a queue feeds. Trouble (no
    network, no login, no answer) is one warning; what comes after it is discarded. Neither method
    raises.
    """

    _waited_in_vain: ClassVar[set[str]] = set()

    def __init__(self, name: str, tracker: TrackerConfig, run: RunInfo) -> None:
        """Start in the background.

        Args:
            name: of the tracker.
            tracker: its settings.
            run: what it is told.
        """
        self._name, self._tracker, self._run = name, tracker, run
        self._lines: SimpleQueue[Line | None] = SimpleQueue()
        self._ending: tuple[str, dict[str, float]] = ("failed", {})
        self._unwarned = Lock()
        self._thread = Thread(target=self._work, name=f"lora_exp-{name}", daemon=True)
        self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        """Pass on one line of `metrics.jsonl`; its values are named `split/name`."""
        if self._thread.is_alive():
            self._lines.put(track.named(record))

    def finish(self, state: str, result: dict[str, Any] | None) -> None:
        """End the run; waits for the tracker at most `FINISH_SECONDS`."""
        self._ending = (state, track.summary(result))
        self._lines.put(None)
        patience = IMPATIENT_SECONDS if self._name in self._waited_in_vain else FINISH_SECONDS
        self._thread.join(patience)
        self._waited_in_vain.discard(self._name)
        if self._thread.is_alive():
            self._waited_in_vain.add(self._name)
            self._warn(f"no answer for {patience:g} s")

    def _work(self) -> None:
        try:
            tracked = track.start(self._name, self._tracker, self._run)
            goes_on = True
            while goes_on:
                waiting = [self._lines.get()]
                while not self._lines.empty():  # what came while the tracker was busy
                    waiting.append(self._lines.get())
                goes_on = waiting[-1] is not None
                tracked.log([line for line in waiting if line is not None])
            tracked.finish(*self._ending)
        except Exception as error:
            self._warn(one_line(error))

    def _warn(self, reason: str) -> None:
        if not self._unwarned.acquire(blocking=False):
            return
        cure = ""
        if self._name == "wandb":
            from lora_exp.track.wandb import give_up

            cure = give_up(self._tracker, self._run)
        log.warning(
            "%s does not follow %s: %s. The run goes on, and metrics.jsonl has it all; "
            "`python -m lora_exp sync` sends it later.%s",
            self._name,
            self._run.name,
            reason,
            cure,
        )
