"""Commands that submit overlapping grids into one folder of outputs at the same moment.

    python tests/integration/concurrency.py [--processes 20]

Each command has four runs, of which its neighbours have some as well; every second one joins the
same grid, the others make one of their own. Then each run has to have been trained once, each
grid's record has to be whole, and nothing half-written may be left.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from itertools import cycle
from pathlib import Path

from campaign import command, end, temporaries, workplace

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import all_grids
from lora_exp.runs.store import all_runs

RUNS = 4
"""Of each command; it shares all but one with the next."""
STEPS = 4
JOINED = "joined"


def main() -> None:
    """Start them, wait for them, and look at what they left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=20)
    processes = parser.parse_args().processes
    began = time.perf_counter()
    with workplace() as (outputs, model):
        failures = _run(processes, outputs, model)
        lost = failures + _missing(processes, outputs) + temporaries(outputs)
        runs, grids = len(all_runs(outputs)), len(all_grids(outputs))
    seconds = time.perf_counter() - began
    print(f"{processes} commands, {processes * RUNS} points, {runs} runs, {grids} grids")
    print(f"{seconds:.0f} s")
    end(lost)


def _run(processes: int, outputs: Path, model: Path) -> list[str]:
    """Start all at once, each with one core and so one worker; what those that failed said."""
    given = [f"model.name_or_path={model}", f"outputs={outputs}", "device=cpu"]
    given += [f"train.max_steps={STEPS}", "train.batch_size=8", "train.log_every=1"]
    cores = cycle(sorted(os.sched_getaffinity(0)))
    started = []
    for number, core in zip(range(processes), cores, strict=False):
        name = [f"grid={JOINED}"] if number % 2 else []
        seeds = f"seed=range({number + 1},{number + 1 + RUNS})"
        started.append(
            subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command("-m", *given, seeds, *name)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate()[0] for process in started]
    return [
        f"a command ended with status {process.returncode}:\n{text}"
        for process, text in zip(started, said, strict=True)
        if process.returncode
    ]


def _missing(processes: int, outputs: Path) -> list[str]:
    """What is not as it would be if the commands had been given one after the other."""
    runs = {run.config.seed: run for run in all_runs(outputs)}
    lost = [f"{run.name}: {what}" for run in runs.values() if (what := _amiss(run))]
    if len(all_runs(outputs)) != processes + RUNS - 1:
        lost.append(f"{len(all_runs(outputs))} runs instead of {processes + RUNS - 1}")
    expected = [{runs[n + m].name for m in range(1, RUNS + 1)} for n in range(processes)]
    found = {grid.name: [*grid.record["runs"]] for grid in all_grids(outputs)}
    joined = found.pop(JOINED, [])
    if sorted(joined) != sorted(set().union(*expected[1::2])):
        lost.append(f"the joined grid has {joined}")
    if sorted(map(sorted, found.values())) != sorted(map(sorted, expected[::2])):
        lost.append(f"the grids have {found}")
    return lost


def _amiss(run: RunFolder) -> str | None:
    """Why it is not a run that was trained once; None if it is."""
    steps = [line["step"] for line in run.metrics() if line["split"] == "train"]
    if run.result is None or run.status["state"] != "done":
        return f"its status is {run.status}"
    if run.status["attempt"] != 1 or run.log.read_text().count("trained parameters by part") != 1:
        return f"it was begun more than once: {run.log.read_text()}"
    if steps != [*range(1, STEPS + 1)]:
        return f"it has the steps {steps}"
    return None


if __name__ == "__main__":
    main()
