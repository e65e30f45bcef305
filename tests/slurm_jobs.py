"""Grids on the cluster, as a user starts them, and what happens to their jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid, all_grids
from lora_exp.runs.store import all_runs

STEPS = 100
SHORT = (
    f"train.max_steps={STEPS}",
    "train.batch_size=8",
    "train.eval_every=20",
    "train.log_every=1",
    "train.checkpoint_seconds=0",  # after each update
    "pack.size=1",
    "device=cpu",
)
PATIENCE_SECONDS = 300


class Launched:
    """A folder of outputs, and the grids that were started into it."""

    def __init__(self, outputs: Path, model: Path) -> None:
        self.outputs, self._model = outputs, model

    def start(
        self, *overrides: str, launcher: str = "slurm", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Give the command."""
        given = [f"model.name_or_path={self._model}", f"outputs={self.outputs}", *SHORT]
        if launcher != "local":
            given += [f"hydra/launcher={launcher}"]
        return subprocess.run(
            [sys.executable, "-m", "lora_exp", "-m", *given, *overrides],
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )

    def submit(self, *overrides: str, **environment: str) -> Grid:
        """Give the command, which must not fail."""
        known = {grid.name for grid in all_grids(self.outputs)}
        done = self.start(*overrides, **environment)
        assert done.returncode == 0, done.stderr
        [grid] = [grid for grid in all_grids(self.outputs) if grid.name not in known]
        return grid

    def told(self, *words: str) -> str:
        """What a verb answers about the outputs."""
        return ask(sys.executable, "-m", "lora_exp", *words, "--outputs", str(self.outputs))

    @property
    def runs(self) -> list[RunFolder]:
        """All of them, by name."""
        return sorted(all_runs(self.outputs), key=lambda run: run.name)

    @property
    def states(self) -> list[str]:
        """Of all runs."""
        return [run.status["state"] for run in self.runs]

    def caught(self, but: RunFolder | None = None, lines: int = 3) -> RunFolder:
        """A run in the middle of its training, with so many lines of metrics, whose worker is
        stopped until it gets SIGCONT, which SLURM sends along with other signals; another one than
        `but`."""

        def catch() -> RunFolder | None:
            for run in self.runs:
                if but is not None and run.name == but.name:
                    continue
                if run.status["state"] == "running" and len([*run.metrics()]) >= lines:
                    os.kill(run.status["pid"], signal.SIGSTOP)
                    if run.status["state"] == "running":
                        return run
            return None

        return wait_until(catch)

    def finished(self) -> Launched:
        """Wait until no job is left."""

        def over() -> bool:
            jobs = [line["job"] for grid in all_grids(self.outputs) for line in grid.jobs]
            listed = ask("squeue", "-h", "-j", ",".join(jobs), "-o", "%i")
            # A closing job may just have submitted others.
            later = [line["job"] for grid in all_grids(self.outputs) for line in grid.jobs]
            return not listed and jobs == later

        wait_until(over)
        return self


def wait_until(holds: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """The first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer


def ask(*command: str) -> str:
    """What a command of SLURM answers."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def printed(grid: Grid) -> str:
    """What the jobs of a grid have printed."""
    return "".join(path.read_text() for path in sorted(grid.path.glob("jobs/*/*.out")))


def job_of(run: RunFolder) -> str:
    """The job that trains a run."""
    return run.status["job"]


def processes_of(job: str) -> tuple[list[int], list[int]]:
    """SLURM's own processes of a job, and all others."""
    number = fact(job, "JobId")
    managers, others = [], []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_text().startswith(f"slurmstepd: [{number}."):
                managers.append(int(process.name))
            elif f"SLURM_JOB_ID={number}" in (process / "environ").read_text().split("\0"):
                others.append(int(process.name))
    return managers, others


def kill(processes: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to those that are there."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def fact(job: str, name: str) -> str:
    """What SLURM knows of a job: `Restarts`, `JobId`."""
    told = ask("scontrol", "show", "job", "-o", job)
    return told.partition(f"{name}=")[2].split()[0]


def evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """What was measured, without times."""
    return [line for line in run.metrics() if line["split"] != "train"]


def table(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """The metrics of runs, to the last digit."""
    return {run.name: json.dumps((run.result or {})["metrics"]) for run in runs}


def stop(daemon: str, number: signal.Signals = signal.SIGTERM) -> None:
    """End a daemon of the cluster: `slurmctld`, `slurmdbd`, `slurmd.n1`."""
    file = Path(os.environ["SLURM_CONF"]).with_name(f"{daemon}.pid")
    process = int(file.read_text())
    kill([process], number)
    wait_until(lambda: not Path(f"/proc/{process}").exists())
