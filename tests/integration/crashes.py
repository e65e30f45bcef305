"""The crash campaign: runs that are killed at random moments, and taken up until they are done.

    python tests/integration/crashes.py --runs 200 --seed 0

Each trial trains short runs on `agreement` with a tiny model in outputs of its own: one run, a
pack, or a grid with its workers. It dies one to five times: by SIGKILL after a random time or just
before a random file operation, or in the middle of a write. After each death all that is written
must be true. Then the same command ends it, and what is there must be what is left where nobody
died, to the last bit (grids, whose packs are formed anew: losses within 1e-5). Each attempt is a
child of this process, and the product knows nothing of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: children are forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.path.insert(0, str(Path(__file__).parents[1]))

import forked
import packs
from forked import Ended
from integration.deaths import KILLED, before_operation, in_a_write, note_operations

from lora_exp.runs.config import Config, PackConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.lease import is_held
from lora_exp.runs.store import all_runs

MOST_DEATHS = 5
PLACES = 3
"""Runs in a pack."""
TOLERANCE = 1e-5
"""Of losses, where packs are formed anew."""
TIMINGS = ("seconds", "wall_seconds", "train_seconds", "tokens_per_second", "peak_memory_bytes")
OF_ATTEMPTS = ("log.txt", "run.json", "code.patch", "config.yaml", "status.json")
"""Files that tell of attempts, or where the run lies."""


# -- what is trained -------------------------------------------------------------------------------


class Attempt(Protocol):
    """Runs a command, from its beginning or from where it was killed."""

    def __call__(
        self,
        model: Path,
        outputs: Path,
        pause: float,
        before: Callable[[], None] = lambda: None,
        kill_after: float | None = None,
    ) -> Ended:
        """
        Args:
            model: the tiny one.
            outputs: the folder.
            pause: seconds between checkpoints.
            before: called in its process first.
            kill_after: seconds after which all of its processes are killed.
        """
        ...


@dataclass(frozen=True)
class Kind:
    """Of trials."""

    attempt: Attempt
    deaths: tuple[str, ...]
    exact: bool
    """What it leaves is the same to the last bit, however often it was killed."""


def solo(
    model: Path,
    outputs: Path,
    pause: float,
    before: Callable[[], None] = lambda: None,
    kill_after: float | None = None,
) -> Ended:
    """`python -m lora_exp`: a run."""
    given = _given(model, outputs, pause)
    return forked.run(*given, before=before, kill_after=kill_after)


def grid(
    model: Path,
    outputs: Path,
    pause: float,
    before: Callable[[], None] = lambda: None,
    kill_after: float | None = None,
) -> Ended:
    """`python -m lora_exp -m`: six runs, a coordinator and its workers, each of which may die.

    Workers are forked, which spares each of them the seconds that importing torch takes.
    """

    def prepare() -> None:
        from lora_exp.grid import coordinator

        forking = multiprocessing.get_context("fork")
        coordinator.multiprocessing = SimpleNamespace(get_context=lambda kind: forking)  # type: ignore
        before()

    points = ["-m", "lora.r=2,8", "seed=1,2,3", f"pack.size={PLACES}", "device=cpu"]
    alive, held = os.pipe()  # until the last process has ended
    ended = forked.run(
        *points, *_given(model, outputs, pause), before=prepare, kill_after=kill_after
    )
    os.close(held)
    os.read(alive, 1)
    os.close(alive)
    return ended


def _given(model: Path, outputs: Path, pause: float) -> list[str]:
    return [
        f"model.name_or_path={model}",
        f"outputs={outputs}",
        f"train.checkpoint_seconds={pause}",
        "train.max_steps=24",
        "train.eval_every=8",
        "train.log_every=5",
        "train.batch_size=8",
        "train.lr=5e-3",
        "lora.dropout=0.1",
    ]


class _Queue:
    """That of a grid, for one worker and without a coordinator."""

    def __init__(self, runs: Sequence[RunFolder]) -> None:
        from lora_exp.grid.packs import tickets
        from lora_exp.grid.queue import Queue

        self.queue = Queue(tickets(runs), {1})

    def take(self, like: Path | None, number: int) -> list[Path]:
        return self.queue.take(1, like, number)

    def ended(self, run: Path, state: str) -> None:
        self.queue.ended(run, state)


def pack(
    model: Path,
    outputs: Path,
    pause: float,
    before: Callable[[], None] = lambda: None,
    kill_after: float | None = None,
) -> Ended:
    """A worker of a grid: five runs of different lengths for three places."""
    from lora_exp.train.work import work

    def train() -> None:
        before()
        folders = [RunFolder(path) for path in packs.queue(_mates(model, outputs, pause), PLACES)]
        for folder in folders:
            folder.settle()
        work(_Queue([folder for folder in folders if folder.result is None]), "cpu")

    return forked.call(train, kill_after=kill_after)


def _mates(model: Path, outputs: Path, pause: float) -> list[Config]:
    same: dict[str, Any] = {"eval_every": 8, "log_every": 5, "lora_dropout": 0.1, "lr": 5e-3}
    same |= {"checkpoint_seconds": pause}
    lengths = (8, 24, 16, 12, 10)
    return [
        replace(
            packs.recipe(model, outputs, seed=seed, max_steps=steps, **same),
            pack=PackConfig(PLACES),
        )
        for seed, steps in enumerate(lengths, start=1)
    ]


KINDS = {
    "solo": Kind(solo, ("time", "operation", "write"), exact=True),
    "pack": Kind(pack, ("time", "operation", "write"), exact=True),
    "grid": Kind(grid, ("time", "operation"), exact=False),
}


# -- what must hold --------------------------------------------------------------------------------


def lies(outputs: Path) -> Iterator[str]:
    """What is written, or told by `status`, and is not so, while nothing trains."""
    told = forked.run("status", "--outputs", str(outputs))
    if told.status != 0 or "Traceback" in told.output:
        yield f"status fails: {told.output}"
    rows = [re.split(r" {2,}", line.strip()) for line in told.output.splitlines()]
    states = {row[0]: row[1] for row in rows if len(row) > 1}
    for folder in all_runs(outputs):
        state, result = states.get(folder.name), folder.path / "result.json"
        if (state == "done") != result.exists() or state not in ("done", "queued", "lost"):
            yield f"{folder.name} is {state}, result: {result.exists()}"
        if result.exists() and not {"metrics", "wall_seconds"} <= {*json.loads(result.read_text())}:
            yield f"{result} is not whole"
        written = folder.path / "status.json"
        if written.exists() and not result.exists():
            state = json.loads(written.read_text())["state"]
            if state in ("done", "failed", "cancelled"):
                yield f"{written}: {state}"
        list(folder.metrics())  # whole lines are JSON


def leftovers(outputs: Path) -> Iterator[str]:
    """Files that nobody needs once all runs are done: temporary ones, and leases that are held."""
    for path in outputs.rglob("*"):
        if ".tmp" in path.name or path.name == "checkpoint":
            yield str(path)
    for lease in (outputs / "leases").iterdir():
        epochs = [path for path in lease.iterdir() if path.name != "lock"]
        if len(epochs) != 1 or is_held(lease):  # who dies with a result may not give it back
            yield f"{lease}: {sorted(path.name for path in epochs)}"


def outcome(outputs: Path) -> dict[str, dict[str, Any]]:
    """By the name of each run, all that must not depend on how often it was killed."""
    found = {}
    for folder in all_runs(outputs):
        paths = [path for path in folder.path.rglob("*") if path.is_file()]
        names = {str(path.relative_to(folder.path)): path for path in paths}
        run: dict[str, Any] = {
            "files": names.keys() - {*OF_ATTEMPTS},
            "state": folder.status["state"],
        }
        for name, path in names.items():
            if path.suffix == ".jsonl":
                lines = map(json.loads, path.read_text().splitlines())
                run[name] = [_without_timings(line) for line in lines]
            elif name == "result.json":
                run[name] = _without_timings(json.loads(path.read_text()))
            elif name not in OF_ATTEMPTS:
                run[name] = path.read_bytes()
        found[folder.name] = run
    return found


def _without_timings(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in TIMINGS}


def differences(
    found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]], *, exact: bool
) -> Iterator[str]:
    """Where outcomes are not what they should be."""
    if found.keys() != expected.keys():
        yield f"there are {sorted(found)}"
        return
    for name, run in found.items():
        other = expected[name]
        for part in run.keys() | other.keys() if exact else ("files", "state"):
            if run.get(part) != other.get(part):
                yield f"{name}: {part} differs"
        ours, theirs = _losses(run), _losses(other)
        if ours.keys() != theirs.keys():
            yield f"{name}: lines of metrics differ"
        elif (most := max(abs(ours[key] - theirs[key]) for key in ours)) > TOLERANCE:
            yield f"{name}: losses differ by {most:.2g}"


def _losses(run: dict[str, Any]) -> dict[tuple[str, int], float]:
    lines = run.get("metrics.jsonl", [])
    return {(line["split"], line["step"]): line["loss"] for line in lines}


# -- the campaign ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undisturbed:
    """What a command comes to if nobody dies."""

    outcome: dict[str, dict[str, Any]]
    seconds: float
    operations: int
    largest: int
    """Bytes of the largest file."""


@dataclass
class Figures:
    """What a kind of trial came to."""

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    """Of each trial that did not end as it should, what was wrong."""
    deaths: Counter[str] = field(default_factory=Counter)
    """By kind."""
    before: Counter[str] = field(default_factory=Counter)
    """Deaths before file operations, by what they were about."""


class Campaign:
    """Trials below a folder; those that survive leave nothing there.

    Args:
        place: the folder.
        seed: of what is random; times are as exact as the machine.
    """

    def __init__(self, place: Path, seed: int = 0) -> None:
        from tiny import save

        self.place, self.seed = place, seed
        self.model = save(place / "tiny")
        self.figures = {name: Figures() for name in KINDS}
        self._undisturbed: dict[str, Undisturbed] = {}

    def undisturbed(self, name: str) -> Undisturbed:
        """The command that is left alone."""
        if name not in self._undisturbed:
            outputs, log = self.place / name, self.place / f"{name}.log"

            def count() -> None:
                def write(number: int, what: str) -> None:
                    with log.open("a") as file:
                        file.write(f"{what}\n")

                note_operations(outputs, write)

            began = time.monotonic()
            ended = KINDS[name].attempt(self.model, outputs, 0.0, count)
            seconds = time.monotonic() - began
            assert ended.status == 0, ended.output
            self._undisturbed[name] = Undisturbed(
                outcome=outcome(outputs),
                seconds=seconds,
                operations=len(log.read_text().splitlines()),
                largest=max(p.stat().st_size for p in outputs.rglob("*") if p.is_file()),
            )
        return self._undisturbed[name]

    def trial(self, name: str, number: int) -> list[str]:
        """Train, die, and go on.

        Args:
            name: of its kind.
            number: of the trial, which decides with the seed how it dies.

        Returns:
            What was wrong; then its outputs stay.
        """
        kind, whole, figures = KINDS[name], self.undisturbed(name), self.figures[name]
        dice = random.Random(f"{self.seed} {name} {number}")
        outputs = self.place / f"{name}-{number}"
        wrong: list[str] = []
        planned, deaths, sooner = dice.randint(1, MOST_DEATHS), 0, 1.0
        while deaths < planned:
            pause = dice.choice([0.0, 1e9])
            death = dice.choice(kind.deaths)
            ended = self._die(kind, outputs, pause, death, sooner * dice.random(), whole)
            died = ended.status < 0 or KILLED in ended.output or "its worker died" in ended.output
            deaths += died
            figures.deaths[death] += died
            for what in re.findall(rf"{KILLED}\S+ (\S+)", ended.output):
                figures.before[_about(what)] += 1
            if ended.status > 0 or "Traceback" in ended.output:
                wrong.append(f"{death}: exit status {ended.status}\n{ended.output}")
            wrong += [f"after {death}: {lie}" for lie in lies(outputs)]
            if ended.status == 0:
                if deaths:
                    break
                shutil.rmtree(outputs)  # it was done before: once more from its beginning
                sooner /= 2
        ended = kind.attempt(self.model, outputs, 0.0)
        if ended.status != 0 or "Traceback" in ended.output:
            wrong.append(f"at the end: exit status {ended.status}\n{ended.output}")
        wrong += differences(outcome(outputs), whole.outcome, exact=kind.exact)
        wrong += [*lies(outputs), *leftovers(outputs)]
        figures.tried += 1
        if wrong:
            figures.lost.append(f"{name} {number}: " + "\n  ".join(wrong))
        else:
            shutil.rmtree(outputs)
        return wrong

    def _die(
        self,
        kind: Kind,
        outputs: Path,
        pause: float,
        death: str,
        where: float,
        whole: Undisturbed,
    ) -> Ended:
        """An attempt that dies, or is done before: `where` is from 0 to 1."""

        def arm() -> None:
            if death == "operation":
                before_operation(outputs, 1 + int(where * whole.operations))
            elif death == "write":
                in_a_write(int(whole.largest**where))

        kill_after = where * whole.seconds if death == "time" else None
        return kind.attempt(self.model, outputs, pause, arm, kill_after)


def _about(path: str) -> str:
    """The part of the outputs, or of a run's folder, that a file belongs to."""
    first, *inside = Path(path).parts
    part = inside[1] if first == "runs" and len(inside) > 1 else first
    return part.removesuffix(".tmp")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="trials, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="crashes-"))
    campaign = Campaign(place, options.seed)
    began = time.monotonic()
    for number in range(options.first, options.first + options.runs):
        # Of four trials, two are a run alone.
        name = ["solo", "pack", "solo", "grid"][number % 4]
        if name not in options.kinds:
            name = options.kinds[number % len(options.kinds)]
        for line in campaign.trial(name, number):
            print(f"{name} {number}: {line}", flush=True)
    print(f"{'':6}{'tried':>8}{'survived':>10}{'lost':>6}   deaths")
    lost = 0
    for name, figures in campaign.figures.items():
        survived = figures.tried - len(figures.lost)
        lost += len(figures.lost)
        deaths = ", ".join(f"{figures.deaths[kind]} {kind}" for kind in KINDS[name].deaths)
        print(f"{name:6}{figures.tried:8}{survived:10}{len(figures.lost):6}   {deaths}")
    before = Counter(what for one in campaign.figures.values() for what in one.before.elements())
    told = [f"{number} {what}" for what, number in before.most_common()]
    print("before operations on:", ", ".join(told))
    print(f"{time.monotonic() - began:.0f} s")
    if lost:
        sys.exit(f"What was lost is in {place}.")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
