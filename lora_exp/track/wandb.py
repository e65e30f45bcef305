"""Weights & Biases as a sink.

Everything of W&B, the import included, happens in one daemon thread that a queue feeds: the run
never waits for it, except for a bounded time in `finish`. W&B's own service process does the
uploading.

A resumed run keeps its W&B id. Online, W&B then drops steps up to the last one it has; offline,
each attempt leaves a folder of its own, all with the one id.
"""

from __future__ import annotations

import atexit
import logging
import os
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, ClassVar

from lora_exp.runs.config import TrackerConfig
from lora_exp.track import RunInfo

if TYPE_CHECKING:
    from wandb import Run
    from wandb.sdk.lib.service.service_connection import ServiceConnection

FINISH_SECONDS = 30.0
"""How long `finish` waits for W&B; offline takes about a second at most."""
IMPATIENT_SECONDS = 2.0
"""How long it waits once W&B has let this process wait in vain, until W&B is back."""

log = logging.getLogger("lora_exp")

_COORDINATES = ("step", "epoch", "split")

_QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    # Code, machine and packages are in the run folder; collecting them again costs time.
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    # W&B's stop button interrupts the process, and with it the neighbours in a pack.
    "stop_fn": lambda: None,
}


class WandbSink:
    """One run on W&B.

    Trouble (no network, no login, no answer, no wandb) is one warning; what comes after it is
    discarded. Neither method raises.
    """

    _waited_in_vain: ClassVar[bool] = False

    def __init__(self, tracker: TrackerConfig, run: RunInfo) -> None:
        """Start W&B in the background.

        Args:
            tracker: mode, project, entity and tags.
            run: what W&B is told about the run.
        """
        # W&B reports its own errors to its server, and at exit waits for the answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._tracker = tracker
        self._info = run
        self._steps: SimpleQueue[tuple[int, dict[str, Any]] | None] = SimpleQueue()
        self._ending: tuple[str, dict[str, Any]] = ("failed", {})
        self._unwarned = Lock()
        self._service: ServiceConnection | None = None
        self._thread = Thread(target=self._work, name="lora_exp-wandb", daemon=True)
        self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        """Pass on one line of `metrics.jsonl`; its values are named `split/name`."""
        if not self._thread.is_alive():
            return
        split = record["split"]
        values = {f"{split}/{k}": v for k, v in record.items() if k not in _COORDINATES}
        self._steps.put((record["step"], {"epoch": record["epoch"], **values}))

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        """Mark the run as `done`, `preempted` or, with any other state, failed.

        Waits for W&B to take what was logged, at most `FINISH_SECONDS`.

        Args:
            state: how the run ended.
            summary: goes to W&B's summary, beside the last value of each metric.
        """
        self._ending = (state, summary)
        self._steps.put(None)
        patience = IMPATIENT_SECONDS if WandbSink._waited_in_vain else FINISH_SECONDS
        self._thread.join(patience)
        WandbSink._waited_in_vain = gave_up = self._thread.is_alive()
        if gave_up:
            self._warn(f"no answer for {patience:g} s")

    def _work(self) -> None:
        try:
            run = self._start()
            while (item := self._steps.get()) is not None:
                step, values = item
                # Records of one step are merged: W&B keeps a step open until a later one.
                run.log(values, step=step)
            state, summary = self._ending
            run.summary.update(summary)
            if state == "preempted":
                # With an exit code other than 0 this is W&B's `preempted`: it expects a resume.
                run.mark_preempting()
            run.finish(exit_code=0 if state == "done" else 1)
        except Exception as error:
            self._warn(str(error) or type(error).__name__)

    def _start(self) -> Run:
        import wandb

        # Silence must be known before W&B looks for a login: then it never asks for one.
        settings = {"mode": self._tracker.mode, **_QUIET}
        self._service = wandb.setup(wandb.Settings(**settings)).ensure_service()
        return wandb.init(
            id=self._info.signature,
            resume="allow",
            group=self._info.group,
            name=self._info.name,
            config=self._info.config,
            dir=self._info.outputs,
            project=self._tracker.project,
            entity=self._tracker.entity,
            tags=self._tracker.tags,
            # Runs of a pack are tracked side by side in one process.
            reinit="create_new",
            settings=wandb.Settings(**settings),
        )

    def _warn(self, reason: str) -> None:
        if not self._unwarned.acquire(blocking=False):
            return
        log.warning(
            "W&B does not follow %s: %s. The run goes on, and metrics.jsonl has it all. "
            "Log in with `wandb login`, or keep W&B's files here with tracker.mode=offline; "
            "what it kept so far is in %s (`wandb sync`).",
            self._info.name,
            " ".join(reason.split()).rstrip("."),
            self._info.outputs / "wandb",
        )
        if self._service is not None and self._tracker.mode == "online":
            # Registered after W&B's own exit hook, it runs before it.
            atexit.register(_stop, self._service)


def _stop(service: ServiceConnection) -> None:
    """End W&B's service, in place of W&B's exit hook.

    That hook waits as long as the service keeps trying, a minute and more if W&B is down. Online,
    a run that is finished is with W&B already. (Offline it may still be on its way to the disk,
    but there the service ends by itself.)
    """
    if service._proc is not None:
        service._proc._process.kill()
    with suppress(Exception):  # it takes leave of a dead process, and only once
        service.teardown(exit_code=0)
