"""Thousands of runs in the queue of the tests' cluster, submitted, shown and cancelled.

    eval "$(tests/cluster/start)"
    python tests/integration/thousands.py [--runs 2000]

Each run has a job of its own, more than an array of this cluster may have. None of them starts:
they are held. Printed: how long submission, `status` and `cancel` take.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections import Counter

from campaign import end, told, workplace

from lora_exp.runs.grid import all_grids
from lora_exp.runs.store import all_runs


def main() -> None:
    """Submit, look, cancel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    with workplace() as (outputs, model):
        place = ("--outputs", str(outputs))
        given = [f"model.name_or_path={model}", f"outputs={outputs}", "train.max_steps=2"]
        given += ["hydra/launcher=slurm", "hydra.launcher.gpus=0", "pack.size=1"]
        given += [f"hydra.launcher.array_parallelism={runs}"]
        given += ["+hydra.launcher.additional.hold=true"]
        _timed("submitted", "-m", *given, f"seed=range(1,{runs + 1})")
        [grid] = all_grids(outputs)
        arrays = [line["tasks"] for line in grid.jobs if not line["closing"]]
        jobs = ",".join(line["job"] for line in grid.jobs)
        waiting = len(_queue(jobs))
        print(f"arrays of {arrays} jobs; {waiting} wait, the closing one included")
        said = _timed("status", "status", *place)
        _timed("cancel", "cancel", f"grid={grid.name}", *place)
        states = Counter(run.status["state"] for run in all_runs(outputs))
        print(f"then {len(_queue(jobs))} jobs wait; runs: {dict(states)}")
        lost = [] if sum(arrays) == runs and waiting == runs + 1 else ["jobs are missing"]
        if f"{runs:,} runs" not in said and f"{runs} runs" not in said:
            lost.append(f"status says {said[-500:]}")
        if states != {"cancelled": runs} or _queue(jobs):
            lost.append("not all is cancelled")
    end(lost)


def _timed(what: str, *words: str) -> str:
    began = time.monotonic()
    said = told(*words)
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)
    return said


def _queue(jobs: str) -> list[str]:
    """Those that wait, an element of an array each."""
    words = ["squeue", "-h", "-r", "-t", "PD", "-j", jobs, "-o", "%i"]
    return subprocess.run(words, capture_output=True, text=True).stdout.split()


if __name__ == "__main__":
    main()
