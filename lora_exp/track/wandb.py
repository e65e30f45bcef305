"""Weights & Biases.

W&B's own service process does the uploading. The config goes there nested: W&B itself flattens it
to dotted keys (`lora.r`) in its tables and filters, and keys that have dots already get in its way.

A resumed run keeps its W&B id. Online, steps up to the last one that W&B has are not sent again;
offline, each attempt leaves a folder of its own, all with the one id.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lora_exp.errors import UserError, one_line
from lora_exp.runs.config import TrackerConfig
from lora_exp.track import Line, RunInfo

if TYPE_CHECKING:
    from wandb import Run
    from wandb.sdk.lib.service.service_connection import ServiceConnection

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
_service: ServiceConnection | None = None


def start(tracker: TrackerConfig, info: RunInfo) -> WandbRun:
    """Open the run at W&B."""
    return WandbRun(tracker, info)


class WandbRun:
    """One run on W&B."""

    def __init__(self, tracker: TrackerConfig, info: RunInfo) -> None:
        import wandb

        settings = quiet(tracker.mode)
        self._info = info
        self._run: Run = wandb.init(
            id=info.signature,
            resume="allow",
            group=info.group,
            job_type=info.method,
            name=info.name,
            config=info.config,
            dir=info.outputs,
            project=tracker.project,
            entity=tracker.entity,
            tags=list(dict.fromkeys([*tracker.tags, *info.tags])),
            # Runs of a pack are tracked side by side in one process.
            reinit="create_new",
            settings=settings,
        )

    def log(self, lines: Sequence[Line]) -> int:
        """Lines of one step are merged: W&B keeps a step open until a later one."""
        new = [(step, values) for step, values in lines if step >= self._run.starting_step]
        for step, values in new:
            self._run.log(values, step=step)
        return len(new)

    def finish(self, state: str, summary: dict[str, float]) -> None:
        """The run is `done`, `preempted` or, with any other state, failed."""
        import wandb

        self._run.summary.update(summary)
        if state == "done" and self._info.adapter is not None:
            name = f"adapter-{self._info.signature}"
            adapter = wandb.Artifact(name, type="adapter", metadata={"run": self._info.name})
            adapter.add_dir(str(self._info.adapter))
            self._run.log_artifact(adapter)
        if state == "preempted":
            # With an exit code other than 0 this is W&B's `preempted`: it expects a resume.
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == "done" else 1)


def quiet(mode: str) -> Any:
    """W&B's settings, silent; its service runs by then.

    Silence must be known before W&B looks for a login: then it never asks for one.
    """
    global _service
    # W&B reports its own errors to its server, and at exit waits for the answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.Settings(mode=mode, **_QUIET)  # pyright: ignore[reportArgumentType]
    _service = wandb.setup(settings).ensure_service()
    return settings


def check_login(otherwise: str) -> None:
    """See whether W&B will know who this is; nobody is asked.

    Args:
        otherwise: what does without.

    Raises:
        UserError: if it will not.
    """
    quiet("online")
    import wandb

    try:
        wandb.Api()
    except wandb.Error as error:
        raise UserError(
            f"W&B: {one_line(error)}. Give it a key, by `wandb login` or WANDB_API_KEY; "
            f"or {otherwise}"
        ) from error


def default_entity() -> str:
    """Who somebody who is logged in is at W&B."""
    import wandb

    return wandb.Api().default_entity or ""


def give_up(tracker: TrackerConfig, info: RunInfo) -> str:
    """W&B does not answer: do not wait for it at exit either.

    Returns:
        What the user can do.
    """
    if _service is not None and tracker.mode == "online":
        # Registered after W&B's own exit hook, it runs before it.
        atexit.register(_stop, _service)
    return (
        " Log in with `wandb login`, or keep W&B's files here with tracker.mode=offline; what it "
        f"kept so far is in {info.outputs / 'wandb'}."
    )


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
