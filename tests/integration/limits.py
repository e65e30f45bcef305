"""Runs whose epoch takes longer than the time limit of their jobs, on the tests' cluster.

    eval "$(tests/cluster/start)"
    python tests/integration/limits.py [--steps 9000]

First two runs are trained on this machine, undisturbed. Then they are left to SLURM with its least
limit, a minute, so that each attempt ends in the middle of an epoch. In the end each run has to
have been started anew at least three times, never to have come as far as an epoch at once, to count
its attempts rightly, and to have each step once, with the numbers of its twin to the last digit.
"""

from __future__ import annotations

import argparse
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from campaign import end, temporaries, told, workplace

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import all_grids
from lora_exp.runs.store import all_runs

LAYERS = 24
"""Of the model: an update takes some 20 ms, so that 4,000 of them, an epoch, take more than a
minute."""
LEAST_ATTEMPTS = 4
TIMES = ("train_seconds", "wall_seconds", "tokens_per_second", "peak_memory_bytes")
"""Of a result, what no two trainings have alike."""


def main() -> None:
    """Train the runs twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=9000)
    steps = parser.parse_args().steps
    with workplace(num_hidden_layers=LAYERS) as (outputs, model):
        alone = outputs.with_name("alone")
        began = time.monotonic()
        told(*_grid(model, alone, steps))
        print(f"undisturbed, on this machine: {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        limits = ("hydra.launcher.time=1", "hydra.launcher.warning=5")
        told(
            *_grid(model, outputs, steps), "hydra/launcher=slurm", "hydra.launcher.gpus=0", *limits
        )
        while not _over(outputs):
            time.sleep(1)
        print(f"with limits of a minute: {time.monotonic() - began:.0f} s", flush=True)
        twins = {run.name: run for run in all_runs(alone)}
        lost = temporaries(outputs)
        for run in all_runs(outputs):
            lost += [f"{run.name}: {problem}" for problem in _problems(run, twins[run.name])]
    end(lost)


def _grid(model: Path, outputs: Path, steps: int) -> list[str]:
    given = [f"model.name_or_path={model}", f"outputs={outputs}", "device=cpu", "pack.size=1"]
    given += ["train.batch_size=1", "train.log_every=1", f"train.max_steps={steps}", "lora.r=1,2"]
    return ["-m", *given]


def _over(outputs: Path) -> bool:
    """No job of its grid is in the queue."""
    from slurm_jobs import ask

    def jobs() -> list[str]:
        return [line["job"] for grid in all_grids(outputs) for line in grid.jobs]

    known = jobs()
    # A closing job may just have submitted others.
    return not ask("squeue", "-h", "-j", ",".join(known), "-o", "%i") and known == jobs()


def _problems(run: RunFolder, twin: RunFolder) -> list[str]:
    """What is not as it should be."""
    status = run.status
    if status["state"] != "done":
        return [f"{status['state']}: {status.get('reason')}"]
    log = run.log.read_text()
    began = [0, *(int(step) for step in re.findall(r"going on from step (\d+)\n", log))]
    per_epoch = round(status["step"] / status["epoch"])
    print(f"{run.name}: {per_epoch} steps an epoch; attempts began at steps {began}")
    problems = []
    counted = [1, *(int(number) for number in re.findall(r"attempt (\d+): ", log))]
    if counted != [*range(1, len(began) + 1)] or status["attempt"] != len(began):
        problems.append(f"attempts {counted}, and {status['attempt']} in its status")
    if len(began) < LEAST_ATTEMPTS:
        problems.append("too few attempts to say anything")
    if not all(0 < later - step < per_epoch for step, later in pairwise([*began, status["step"]])):
        problems.append("an attempt came to nothing, or as far as an epoch")
    if _lines(run) != _lines(twin):
        problems.append("its metrics differ")
    if _result(run) != _result(twin):
        problems.append(f"its result differs: {_result(run)} for {_result(twin)}")
    return problems


def _lines(run: RunFolder) -> list[dict[str, Any]]:
    return [line | {"seconds": None} for line in run.metrics()]


def _result(run: RunFolder) -> dict[str, Any]:
    return (run.result or {}) | dict.fromkeys(TIMES)


if __name__ == "__main__":
    main()
