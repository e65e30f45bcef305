"""A grid on the tests' cluster, with a fault every few seconds, ends in the table of one without.

    eval "$(tests/cluster/start)"
    python tests/integration/faults.py [--runs 500] [--every 5]

First the grid is trained on this machine, undisturbed. Then it is left to SLURM, and until no job
is left, one of these happens every few seconds: a process of a job is killed, all of them are, a
job is requeued or warned, a node's slurmd is gone for some seconds (after ten SLURM gives the node
up), slurmctld or slurmdbd is. What has failed by then, since it was hit twice, is given to `retry`.
In the end every run has to have each step once, the evaluations of its twin and, in `report --csv`,
its numbers to the last digit.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from campaign import end, temporaries, told, workplace

from lora_exp.runs.grid import all_grids
from lora_exp.runs.store import all_runs

STEPS = 40
JOBS = 4
MEASURED = ("train_seconds", "peak_memory_bytes")
"""Columns of a report that no two trainings have alike."""
ROUNDS = 5
"""Most calls of `retry`."""
NODES = ("n1", "n2", "n3")


def main() -> None:
    """Train the grid twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0, help="of which fault is next")
    given = parser.parse_args()
    with workplace() as (outputs, model):
        alone = outputs.with_name("alone")
        began = time.monotonic()
        told(*_grid(model, alone, given.runs))
        print(f"undisturbed, on this machine: {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        told(*_grid(model, outputs, given.runs), *_slurm(given.runs))
        faults = Faults(given.seed)
        while not _over(outputs):
            faults.mend()
            if time.monotonic() - faults.latest >= given.every:
                faults.happen()
            time.sleep(0.5)
        faults.mend(at_once=True)
        print(f"{faults}; {time.monotonic() - began:.0f} s; then: {_states(outputs)}", flush=True)
        rounds = _retry(outputs)
        print(f"after {rounds} calls of retry: {_states(outputs)}")
        attempts = Counter(run.status["attempt"] for run in all_runs(outputs))
        print(f"runs by their number of attempts: {dict(sorted(attempts.items()))}")
        lost = _differences(outputs, alone) + temporaries(outputs)
    end(lost)


def _grid(model: Path, outputs: Path, runs: int) -> list[str]:
    given = [f"model.name_or_path={model}", f"outputs={outputs}", "device=cpu", "pack.size=1"]
    given += [f"train.max_steps={STEPS}", "train.batch_size=8", "train.log_every=1"]
    given += ["train.eval_every=20", "train.checkpoint_seconds=0", "lora.r=1,2"]
    return ["-m", *given, f"seed=range(1,{runs // 2 + 1})"]


def _slurm(runs: int) -> list[str]:
    share = f"hydra.launcher.packs_per_job={-(-runs // JOBS)}"
    return ["hydra/launcher=slurm", "hydra.launcher.gpus=0", share]


class Faults:
    """What happens to the cluster, and is mended after a while."""

    def __init__(self, seed: int) -> None:
        self.latest = time.monotonic()
        """When there was one."""
        self._chance = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self._down: dict[str, float] = {}  # daemons, and when to start them again

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self._counts.items()))
        return f"{self._counts.total()} faults ({counts})"

    def happen(self) -> None:
        """Any of them, if it can."""
        kinds = {
            "process killed": self._kill_one,
            "job killed": self._kill_all,
            "job requeued": lambda: self._ask_of_a_job("scontrol", "requeue"),
            "job warned": lambda: self._ask_of_a_job("scancel", "--signal=USR2"),
            "slurmd": lambda: self._stop(f"slurmd.{self._chance.choice(NODES)}", 20),
            "slurmctld": lambda: self._stop("slurmctld", 4),
            "slurmdbd": lambda: self._stop("slurmdbd", 20),
        }
        kind = self._chance.choice(sorted(kinds))
        if kinds[kind]():
            self._counts[kind] += 1
            self.latest = time.monotonic()

    def mend(self, *, at_once: bool = False) -> None:
        """Start the daemons whose time has come, or all."""
        for daemon, when in [*self._down.items()]:
            if at_once or time.monotonic() >= when:
                program, _, node = daemon.partition(".")
                subprocess.run([program, *(["-N", node] if node else [])], check=True)
                del self._down[daemon]
        # SLURM takes a node away whose processes it could not end in time.
        for node in _answer("sinfo", "-h", "-N", "-p", "main", "-t", "drain", "-o", "%N") or []:
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"])

    def _stop(self, daemon: str, seconds: float) -> bool:
        from slurm_jobs import stop

        if daemon in self._down:
            return False
        crash = daemon.startswith("slurmd.")
        stop(daemon, signal.SIGKILL if crash else signal.SIGTERM)
        self._down[daemon] = time.monotonic() + self._chance.uniform(1, seconds)
        return True

    def _kill_one(self) -> bool:
        return self._kill(1)

    def _kill_all(self) -> bool:
        return self._kill(None)

    def _kill(self, most: int | None) -> bool:
        from slurm_jobs import kill, processes_of

        job = self._job()
        if job is None:
            return False
        processes = processes_of(job)[1]
        self._chance.shuffle(processes)
        kill(processes[:most], signal.SIGKILL)
        return bool(processes)

    def _ask_of_a_job(self, *words: str) -> bool:
        job = self._job()
        return job is not None and _answer(*words, job) is not None

    def _job(self) -> str | None:
        """One that trains."""
        jobs = _answer("squeue", "-h", "-t", "R", "-o", "%i %j") or []
        pairs = zip(jobs[::2], jobs[1::2], strict=True)
        found = [job for job, name in pairs if "closing" not in name]
        return self._chance.choice(found) if found else None


def _answer(*words: str) -> list[str] | None:
    """The words that a command of SLURM says, None if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else None


def _over(outputs: Path) -> bool:
    """No job of its grids is in the queue, as far as slurmctld can be asked."""
    jobs = [line["job"] for grid in all_grids(outputs) for line in grid.jobs]
    listed = _answer("squeue", "-h", "-o", "%A")
    # A closing job may just have submitted others.
    later = [line["job"] for grid in all_grids(outputs) for line in grid.jobs]
    return listed is not None and jobs == later and not {*listed} & {*jobs}


def _states(outputs: Path) -> dict[str, int]:
    return dict(Counter(run.status["state"] for run in all_runs(outputs)))


def _retry(outputs: Path) -> int:
    """As often as something is left, without faults; how often that was."""
    for number in range(ROUNDS):
        if {*_states(outputs)} == {"done"}:
            return number
        told("retry", "state=failed,cancelled,preempted,lost,queued", "--outputs", str(outputs))
        while not _over(outputs):
            time.sleep(1)
    return ROUNDS


def _differences(outputs: Path, alone: Path) -> list[str]:
    """What is not as it was in the grid without faults."""
    twins = {run.name: run for run in all_runs(alone)}
    lost = []
    for run in all_runs(outputs):
        lines, expected = ([*each.metrics()] for each in (run, twins.pop(run.name)))
        for line in [*lines, *expected]:
            line.pop("seconds", None)
        if lines != expected:
            lost.append(f"{run.name}: {run.status['state']}, its metrics differ")
    lost += [f"{name}: is not there" for name in twins]
    tables = [_table(each) for each in (outputs, alone)]
    return lost if tables[0] == tables[1] else [*lost, f"the tables differ: {tables}"]


def _table(outputs: Path) -> list[dict[str, str]]:
    """`report --csv`, without what was measured of the machine."""
    said = told("report", "--rows", "lora.r,seed", "--csv", "-", "--outputs", str(outputs))
    rows = csv.DictReader(io.StringIO(said))
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


if __name__ == "__main__":
    main()
