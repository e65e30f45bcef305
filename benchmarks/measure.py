"""How the speed figures are measured, and a row of their table."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Work = Callable[[], object]
_clock = time.perf_counter
Result = TypeVar("Result")


@dataclass(frozen=True)
class Setting:
    """What a row is measured with."""

    data: Path
    """Has `cola/`."""
    folder: Path
    """For what is written; this row's own."""
    quick: bool

    def repeats(self, number: int) -> int:
        """Fewer where it shall be quick."""
        return max(3, number // 5) if self.quick else number


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    ours: str
    theirs: str
    ratio: str
    target: str = ""
    reached: bool | None = None

    def __str__(self) -> str:
        reached = {True: "yes", False: "no", None: ""}[self.reached]
        cells = (self.what, self.ours, self.theirs, self.ratio, self.target, reached)
        return f"| {' | '.join(cells)} |"


def one_core() -> None:
    """From now on this process has one core, the last, and one thread, whose own time counts: what
    else the machine does disturbs it less."""
    import torch

    global _clock
    _clock = time.thread_time
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def timed(work: Work) -> float:
    """Seconds that it takes, on the GPU as well."""
    torch = sys.modules.get("torch")
    wait = torch.cuda.synchronize if torch and torch.cuda.is_initialized() else lambda: None
    wait()
    began = _clock()
    work()
    wait()
    return _clock() - began


def against(
    what: str,
    ours: Work,
    theirs: dict[str, Work],
    repeats: int,
    target: float | None = None,
    scale: float = 1.0,
    warmup: int = 3,
) -> Row:
    """Time them in turn, and compare with the fastest of theirs.

    Args:
        what: is measured.
        ours: by lora_exp.
        theirs: by name of the setting.
        repeats: rounds.
        target: least ratio.
        scale: how often theirs has to be done for one of ours.
        warmup: rounds before.
    """
    works = {"lora_exp": ours, **theirs}
    for _ in range(warmup):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(timed(work))
    own = seconds.pop("lora_exp")
    best = min(seconds, key=lambda name: statistics.median(seconds[name]))
    others = [second * scale for second in seconds[best]]
    middle, text = spread([b / a for a, b in zip(own, others, strict=True)])
    for name, measured in seconds.items():
        whole = f"{sum(measured) * scale / sum(own):.2f} over all steps"
        median = shown(statistics.median(measured) * scale)
        print(f"  {what} {name}: {median}, {whole}", file=sys.stderr)
    return Row(
        what,
        shown(statistics.median(own)),
        f"{shown(statistics.median(others))}{f' ({best})' if len(theirs) > 1 else ''}",
        text,
        "" if target is None else f"{target:g} times",
        None if target is None else middle >= target,
    )


def spread(values: Sequence[float]) -> tuple[float, str]:
    """The median; and the same as text, with the tenth and ninetieth percentile."""
    low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    middle = statistics.median(values)
    return middle, f"{middle:.2f} ({low:.2f} to {high:.2f})"


def shown(seconds: float) -> str:
    """For people."""
    return f"{seconds * 1e3:.0f} ms" if seconds < 2 else f"{seconds:.1f} s"


def mib(size: int) -> str:
    """For people."""
    return f"{size / 2**20:.0f} MiB"


def apart(work: Callable[[], Result]) -> Result:
    """Its result, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def give_back_memory() -> None:
    """Give what was freed back to the system, so that it does not count as being in use."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
