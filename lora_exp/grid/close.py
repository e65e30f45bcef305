"""The last job of a submission: sees what became of the runs, and submits again what was lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from lora_exp import console
from lora_exp.errors import UserError
from lora_exp.grid import notify, slurm, stages
from lora_exp.grid.plan import Point
from lora_exp.grid.submission import Submission, end, progress
from lora_exp.runs import cluster
from lora_exp.runs.cluster import GONE, Job
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import ENDED, Grid
from lora_exp.runs.lease import STALE_SECONDS, is_held

log = logging.getLogger("lora_exp")
PATIENCE_SECONDS = STALE_SECONDS + 10
"""How long a run may seem to be trained after its process was killed."""
STALLED = 3
"""Runs that were submitted so often without any progress have failed."""
PAUSES = (5, 10, 20, 40, 80, 160)
"""Seconds between two tries of what SLURM does not answer, or refuses: slurmctld may be away."""
T = TypeVar("T")


@dataclass(frozen=True)
class Close:
    """What submitit calls once all other jobs of a submission have ended, however they have."""

    path: Path
    """Of the submission."""

    def __call__(self) -> None:
        """Submit the runs that are left, unless their jobs were cancelled or get nowhere; once none
        is, what waits for them; and if nothing does, tell whoever wants to know.

        Raises:
            SystemExit: with status 1 if runs are left, and nothing will train them.
        """
        console.set_up(alone=False)
        submission = Submission(self.path)
        try:
            self._close(submission)
        finally:
            if not submission.grid.left:
                notify.ended(submission.grid)

    def _close(self, submission: Submission) -> None:
        record = submission.record
        jobs = _patiently(lambda: _states(submission), submission.grid)
        told = ", ".join(sorted({job.state for job in jobs.values()}))
        left = _abandoned([RunFolder(ticket.path) for ticket in submission.left()])
        cancelled = [run for run in left if _was_cancelled(run, jobs)]
        for run in cancelled:
            end(run, "cancelled")
        again = [run for run in left if run not in cancelled]
        settings = slurm.SlurmSettings.of(record["settings"])
        if not again:
            if not cancelled:
                _begin_next_stage(submission.grid, settings)
            return
        stuck = progress(submission.runs) <= record["progress"]
        stalled = record["stalled"] + 1 if stuck else 0
        if stalled >= STALLED:
            reason = f"SLURM jobs ended {STALLED} times without progress, at last {told}."
            for run in again:
                end(run, "failed", reason=f"{reason} See {submission.path}.")
            raise SystemExit(1)
        log.info("%d runs are left; their jobs: %s.", len(again), told)
        if any(job.state == GONE for job in jobs.values()):
            log.warning(
                "SLURM has forgotten how they ended, and has no accounting: even if somebody used "
                "scancel, the runs are submitted again. For good they end with: %s",
                console.verb(f"cancel grid={submission.grid.name}", submission.grid.outputs),
            )
        code = Path(record["code"])
        _patiently(
            lambda: slurm.submit(submission.grid, again, settings, code=code, stalled=stalled),
            submission.grid,
        )


def _begin_next_stage(grid: Grid, settings: slurm.SlurmSettings) -> None:
    """Submit what waits for the runs of a grid, once all of them have ended.

    Raises:
        SystemExit: with status 1 if it cannot be.
    """
    if any(run.status["state"] not in ENDED for run in grid.runs):
        return  # another closing job will see to it
    points = [Point(one.overrides, one.config) for one in stages.take(grid)]
    if points:
        _patiently(lambda: slurm.start(points, settings), grid)


def _states(submission: Submission) -> dict[str, Job]:
    """Where its jobs stand.

    Raises:
        UserError: if SLURM does not say.
    """
    jobs = cluster.states(submission.jobs)
    if not all(job.known for job in jobs.values()):
        raise UserError("squeue does not answer.")
    return jobs


def _patiently(act: Callable[[], T], grid: Grid) -> T:
    """What an action comes to that needs SLURM, tried for some minutes.

    Raises:
        SystemExit: with status 1 if it fails even then.
    """
    for pause in (*PAUSES, None):
        try:
            return act()
        except UserError as error:
            if pause is None:
                hint = console.verb(f"retry grid={grid.name} state=lost", grid.outputs)
                log.error("%s What is left goes on with: %s", error, hint)
                raise SystemExit(1) from None
            log.warning("%s Tried again in %d s.", error, pause)
            sleep(pause)
    raise AssertionError


def _abandoned(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Those that nobody trains; waits until it is known of all."""
    deadline = monotonic() + PATIENCE_SECONDS
    while True:
        held = [run for run in runs if is_held(run.leases)]
        if not held or monotonic() > deadline:
            return [run for run in runs if run not in held]
        sleep(1)


def _was_cancelled(run: RunFolder, jobs: Mapping[str, Job]) -> bool:
    """Whether somebody has cancelled the run, or the job that trained it; of one that none has
    trained, all jobs."""
    if run.cancel_requested:
        return True
    own = jobs.get(str(run.status.get("job")))
    if own is not None:
        return own.state == "CANCELLED"
    return all(job.state == "CANCELLED" for job in jobs.values())
