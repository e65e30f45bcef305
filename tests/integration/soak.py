"""A long grid in one warm worker: its memory, its descriptors, and the time of a run.

    python tests/integration/soak.py [--runs 1000] [--pack 1]

The runs are of three updates each. The worker and the command that hands it its runs are watched
from outside. From the second tenth of the runs to the last neither may keep files open, and the
worker's memory may not grow by more than --growth percent.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from campaign import command, end, temporaries, workplace

from lora_exp.runs.store import all_runs

LOOK_SECONDS = 0.25
CLOSE_TO = 0.1
"""Share of the runs over which a value is averaged."""
OF_A_RUN = 5
"""Descriptors by which looks may differ: files that a run opens, and closes."""


@dataclass(frozen=True)
class Look:
    """At the worker, and the command that started it."""

    done: int
    """Runs that had ended."""
    seconds: float
    memory: float
    """MiB of the worker."""
    descriptors: int
    """Of the worker; its sockets and pipes as well."""
    above: float
    """MiB of the command."""
    descriptors_above: int


def main() -> None:
    """Watch it, and print what there was to see."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--pack", type=int, default=1, help="runs that train together")
    parser.add_argument("--growth", type=float, default=1.0, help="percent of memory")
    given = parser.parse_args()
    with workplace() as (outputs, model):
        looks, said = _watch(outputs, model, given.runs, given.pack)
        ended = sum(run.result is not None for run in all_runs(outputs))
        lost = [] if ended == given.runs else [f"{given.runs - ended} runs: {said[-2000:]}"]
        lost += temporaries(outputs)
    first, last = _near(looks, given.runs // 5), _near(looks, given.runs)
    growth = 100 * (last.memory / first.memory - 1)
    above = 100 * (last.above / first.above - 1)
    for name, look in (("in the second tenth", first), ("at the end", last)):
        print(f"{name} ({look.done} runs): {look.memory:.1f} MiB, {look.descriptors} descriptors;")
        print(f"  the command above it: {look.above:.1f} MiB, {look.descriptors_above} descriptors")
    print(f"growth: {growth:.2f} %, of the command {above:.2f} %")
    tenths = [_near(looks, given.runs * n // 10).memory for n in range(1, 11)]
    print("MiB, by tenth:", *(f"{memory:.1f}" for memory in tenths))
    print("ms for a run, by tenth:", *_times(looks, given.runs))
    if growth > given.growth:
        lost.append(f"memory: it has grown by {growth:.2f} %")
    for was, now in (
        (first.descriptors, last.descriptors),
        (first.descriptors_above, last.descriptors_above),
    ):
        if now > was + OF_A_RUN:
            lost.append(f"descriptors: {now - was} more")
    end(lost)


def _watch(outputs: Path, model: Path, runs: int, pack: int) -> tuple[list[Look], str]:
    """Start the grid on one core, and look at it until it ends."""
    given = [f"model.name_or_path={model}", f"outputs={outputs}", "device=cpu"]
    given += ["train.max_steps=3", "train.batch_size=8", f"pack.size={pack}"]
    core = str(min(os.sched_getaffinity(0)))
    words = ["taskset", "--cpu-list", core, *command("-m", *given, f"seed=range(1,{runs + 1})")]
    looks: list[Look] = []
    with (outputs.parent / "said.txt").open("w+") as said:
        above = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        while above.poll() is None:
            if (look := _look(above.pid, outputs)) is not None:
                looks.append(look)
            time.sleep(LOOK_SECONDS)
        said.seek(0)
        return looks, said.read()


def _look(above: int, outputs: Path) -> Look | None:
    """None while there is no worker."""
    done = sum(1 for _ in outputs.glob("runs/*/result.json"))
    try:
        children = Path(f"/proc/{above}/task/{above}/children").read_text().split()
        worker = max(map(int, children), key=_memory)
        return Look(
            done, time.monotonic(), _memory(worker), _files(worker), _memory(above), _files(above)
        )
    except (OSError, ValueError, IndexError):
        return None


def _memory(process: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _files(process: int) -> int:
    return len([*Path(f"/proc/{process}/fd").iterdir()])


def _near(looks: list[Look], runs: int) -> Look:
    """The median of the looks before so many runs had ended."""
    width = max(1, int(CLOSE_TO * looks[-1].done))
    near = [look for look in looks if runs - width <= look.done < runs] or looks[-1:]
    return Look(
        near[-1].done,
        near[-1].seconds,
        statistics.median(look.memory for look in near),
        statistics.median_low(look.descriptors for look in near),
        statistics.median(look.above for look in near),
        statistics.median_low(look.descriptors_above for look in near),
    )


def _times(looks: list[Look], runs: int) -> list[str]:
    """Milliseconds of a run in each tenth of the grid."""
    ends = [next((o for o in looks if o.done >= runs * n // 10), looks[-1]) for n in range(11)]
    began = next((look for look in looks if look.done), looks[0])
    ends[0] = began
    return [
        f"{1000 * (b.seconds - a.seconds) / max(1, b.done - a.done):.0f}" for a, b in pairwise(ends)
    ]


if __name__ == "__main__":
    main()
