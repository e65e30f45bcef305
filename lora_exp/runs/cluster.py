"""What SLURM knows of jobs: one squeue, and one sacct for those that have long ended."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PATIENCE_SECONDS = 20
"""A controller that does not answer for so long is not waited for."""
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
ACTIVE = {
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
}
UNKNOWN = "UNKNOWN"
"""SLURM could not be asked; that says nothing of the job."""
GONE = "no longer in the queue"
"""squeue knows nothing of it, and there is no accounting that would."""


@dataclass(frozen=True)
class Job:
    """A job, an array of jobs as a whole, or one element of it."""

    state: str
    """In SLURM's words, or `UNKNOWN`, or `GONE`."""
    reason: str = ""
    """Why it waits."""

    @property
    def waiting(self) -> bool:
        """It will start, or start again."""
        return self.state in WAITING

    @property
    def known(self) -> bool:
        """SLURM has said something of it."""
        return self.state != UNKNOWN

    @property
    def ended(self) -> bool:
        """It will never run again."""
        return self.known and self.state not in WAITING | ACTIVE


def states(jobs: Iterable[str]) -> dict[str, Job]:
    """Where jobs stand.

    Args:
        jobs: their ids; `123` also stands for the elements of an array.

    Returns:
        Each of these ids, and the elements that are known of arrays (`123_4`). An array as a whole
        is active if an element is, else waiting if one is, else as one of them ended. Without
        accounting, a job that ended more than MinJobAge (300 s) ago is `GONE`; without squeue, all
        are `UNKNOWN`.
    """
    wanted = list(dict.fromkeys(jobs))
    environment = os.environ | {"SLURM_BITSTR_LEN": "0"}  # else long arrays are cut short
    listed = _ask(["squeue", "-h", "-t", "all", "-o", "%i %T %r"], environment)
    if listed is None:
        return dict.fromkeys(wanted, Job(UNKNOWN))
    found = _of(wanted, (line.split(maxsplit=2) for line in listed))
    missing = [job for job in wanted if job not in found]
    if missing:
        command = ["sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", ",".join(missing)]
        found |= _of(missing, (line.split("|") for line in _ask(command, environment) or []))
    return {job: Job(GONE) for job in wanted} | found


def cancel_waiting(jobs: Iterable[str]) -> list[str]:
    """Take what has not started yet out of the queue; what runs is left alone.

    Returns:
        The jobs, or arrays, of which something waited.
    """
    wanted = list(jobs)
    found = states(wanted)
    waiting = [
        job
        for job in wanted
        if any(one.waiting for name, one in found.items() if name.partition("_")[0] == job)
    ]
    if waiting:
        _ask(["scancel", "--state=PENDING", *waiting], dict(os.environ))
    return waiting


def _of(wanted: Iterable[str], rows: Iterable[list[str]]) -> dict[str, Job]:
    """The wanted jobs among rows of id, state and reason, and their elements."""
    arrays = {job.partition("_")[0] for job in wanted}
    found: dict[str, Job] = {}
    for row in rows:
        if len(row) < 2 or row[0].partition("_")[0] not in arrays:
            continue
        reason = row[2].strip() if len(row) > 2 else ""
        job = Job(row[1].split()[0], "" if reason == "None" else reason)
        for element in _elements(row[0]):
            found[element] = job
            array = element.partition("_")[0]
            if array not in found or _rank(job) > _rank(found[array]):
                found[array] = job
    return found


def _rank(job: Job) -> int:
    return 2 if job.state in ACTIVE else 1 if job.waiting else 0


def _elements(name: str) -> Iterator[str]:
    """`123`, `123_4`, or each of `123_[0-3,7%2]`."""
    array = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", name)
    if array is None:
        yield name
        return
    for part in array[2].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        for number in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{array[1]}_{number}"


def _ask(command: list[str], environment: dict[str, str]) -> list[str] | None:
    """The lines of a command's answer, None if there is none."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=PATIENCE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None
