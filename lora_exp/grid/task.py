"""A job of a grid on SLURM: trains runs until none is left, or until SLURM wants it to leave."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_exp import console
from lora_exp.errors import RunFailed, UserError
from lora_exp.grid import devices
from lora_exp.grid.coordinator import Coordinator
from lora_exp.grid.devices import Device
from lora_exp.grid.queue import Queue, Ticket
from lora_exp.grid.submission import Submission, end, progress
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import ENDED
from lora_exp.runs.lease import Owner, RunBusy
from lora_exp.train.interruption import Interruption

log = logging.getLogger("lora_exp")
RESTARTS = 3
"""A job that was started again so often and then saved no step more does not ask for another."""
LEFT = ("pending", "given", "preempted")
"""States of tickets that are still to be trained."""


@dataclass(frozen=True)
class Task:
    """What submitit calls in a job, and calls again when SLURM has started it again.

    So it only knows where to look. If several processes train a run, each of them calls it.
    """

    path: Path
    """Of the submission."""
    number: int
    """Of the job in its submission, from 0 to `tasks` - 1."""
    tasks: int

    def __call__(self) -> None:
        """Train.

        Raises:
            SystemExit: with status 1 if a run failed here, with 128 + a signal's number if one came
                while runs were left, so that SLURM shows what happened.
        """
        console.set_up(alone=False)
        submission = Submission(self.path)
        often = Owner.here().restarts >= RESTARTS
        before = progress(submission.runs) if often else []
        if submission.record["together"]:
            name = submission.record["runs"][self.number][0]
            tickets, status = _train_together(submission.grid.outputs / "runs" / name)
        else:
            tickets, status = self._train_queue(submission)
        if status > 128 and os.environ["SLURM_PROCID"] == "0":
            _leave(tickets, again=not often or progress(submission.runs) > before)
        if status:
            raise SystemExit(status)

    def _train_queue(self, submission: Submission) -> tuple[Sequence[Ticket], int]:
        """Train what others have not taken.

        Returns:
            The runs that were left at first, and the exit status.
        """
        own = Owner.here()
        with Interruption() as stop:  # not submitit's handlers, which requeue without saving
            tickets = [*submission.left()]
            start = self.number * len(tickets) // self.tasks
            tickets = tickets[start:] + tickets[:start]  # so that not all begin with the same
            if own.restarts:  # it goes on with what it had
                tickets.sort(key=lambda ticket: RunFolder(ticket.path).status.get("job") != own.job)
            coordinator = Coordinator(
                Queue(tickets, peers=self.tasks), _devices(submission, tickets)
            )
            if not stop.requested:
                coordinator.run()
            stopped = coordinator.stopped or stop.requested
        if stopped and any(ticket.state in LEFT for ticket in tickets):
            return tickets, 128 + stopped
        failed = [RunFolder(ticket.path) for ticket in tickets if ticket.state == "failed"]
        return tickets, int(any(run.status.get("job") == own.job for run in failed))


def _train_together(path: Path) -> tuple[Sequence[Ticket], int]:
    """Be one of the processes that train a run.

    Returns:
        The run, and the exit status.
    """
    from lora_exp.train.job import execute

    folder, ticket = RunFolder(path), Ticket(path, state="preempted")
    first = os.environ["SLURM_PROCID"] == "0"
    if folder.status["state"] in ENDED or folder.cancel_requested:
        if first:
            end(folder, "cancelled")
        return [], 0
    # Jobs may share a node.
    os.environ["MASTER_PORT"] = str(20_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000)
    try:
        execute(folder.config_to_train, folder.provenance.get("overrides", []))
    except RunBusy as error:
        log.info("%s", error)
    except UserError as error:
        log.error("%s", error)
        if first:
            end(folder, "failed", reason=str(error))
        return [], 1
    except RunFailed as error:
        log.error("%s", error)
        return [], int(folder.status["state"] == "failed")
    except SystemExit as stopped:
        # The first process has the job requeued, which ends the others.
        return [ticket], int(str(stopped.code)) if first else 0
    return [], 0


def _devices(submission: Submission, tickets: Sequence[Ticket]) -> list[Device]:
    """The GPUs that SLURM gave to this job, or its CPUs."""
    if not tickets:
        return []
    settings, wanted = submission.record["settings"], RunFolder(tickets[0].path).config.device
    found = devices.choose(wanted if settings["gpus"] else "cpu")
    if found[0].kind == "cuda":
        return found
    if settings["gpus"] and wanted != "cpu":
        log.warning("This job has GPUs that torch cannot use, and trains on CPUs.")
    # SLURM need not confine a job to them.
    return found[:1] * int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))


def _leave(tickets: Sequence[Ticket], *, again: bool) -> None:
    """Runs are left, and a signal came: do what SLURM has not done yet.

    Args:
        tickets: of the runs.
        again: whether this job may be started again.
    """
    fate = _fate()
    if fate == "cancelled":
        for ticket in tickets:
            if ticket.state == "preempted":
                end(RunFolder(ticket.path), "cancelled")
    elif fate == "running" and again:
        done = subprocess.run(["scontrol", "requeue", _name()], capture_output=True, text=True)
        log.info("Requeued; runs are left. %s", done.stderr.strip())


def _name() -> str:
    """This job: `123`, or `123_4`, as 123 may be one element's own number and means all of them."""
    name = Owner.here().job
    assert name is not None
    return name


def _fate() -> str:
    """What SLURM is about to do with this job after a signal.

    `running`: nothing more, this was the warning before the time limit or a preemption;
    `cancelled`: somebody wants it to end; `ended`: it ends, or starts again, by itself.
    """
    told = subprocess.run(
        ["scontrol", "show", "job", "-o", _name()], capture_output=True, text=True
    ).stdout
    said = dict(re.findall(r"(\w+)=(\S*)", told))
    if said.get("JobState") == "RUNNING":
        return "running"
    # An ending job is COMPLETING, whatever the cause: one that was cancelled has none, and is not
    # started again.
    again = int(said.get("Restarts", 0)) > Owner.here().restarts
    ending = said.get("JobState") == "COMPLETING" and said.get("Reason") == "None" and not again
    return "cancelled" if ending or said.get("JobState") == "CANCELLED" else "ended"
