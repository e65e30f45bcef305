"""Tables and quantities as plain text: ten thousand lines of it at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from lora_exp.runs.bounds import printable
from lora_exp.runs.records import RunRecord
from lora_exp.runs.selector import STATES

REASON_LENGTH = 160
"""Characters of a reason where there is one line for it."""

COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "lost": "red",
    "preempted": "yellow",
    "cancelled": "yellow",
}


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns without content are left out, and states have their colours.

    Args:
        header: a word for each column.
        rows: as many cells each.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    kept = [number for number in range(len(header)) if any(row[number] for row in rows)]
    widths = [max(len(header[n]), *(len(row[n]) for row in rows)) for n in kept]
    lines = ["  ".join(header[n].ljust(w) for n, w in zip(kept, widths, strict=True)).rstrip()]
    for row in rows:
        cells = [_coloured(row[n], w) for n, w in zip(kept, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _coloured(cell: str, width: int) -> str:
    colour = COLOURS.get(cell)
    padded = cell.ljust(width)
    return typer.style(padded, fg=colour) if colour else padded


def count(number: int, noun: str = "run") -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def counted(runs: Sequence[RunRecord]) -> str:
    """`3 runs: 2 done, 1 failed`."""
    states = Counter(run.state for run in runs)
    of_states = ", ".join(f"{states[state]:,} {state}" for state in STATES if states[state])
    return f"{count(len(runs))}: {of_states}"


def reason(run: RunRecord) -> str:
    """Why a run failed, or stands where it does: the first line, cut to a bounded length; "" if
    nobody said."""
    first = next(iter(run.why.splitlines()), "")
    return first if len(first) <= REASON_LENGTH else first[: REASON_LENGTH - 3] + "..."


def numbers(metrics: Mapping[str, Any]) -> str:
    """Metrics on one line, without losses."""
    return "  ".join(
        f"{name} {value:.4f}"
        for name, value in metrics.items()
        if isinstance(value, float) and not name.startswith("loss")
    )


def duration(seconds: float) -> str:
    """A length of time, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def ago(moment: float | None) -> str:
    """How long ago it was, "" if it never was."""
    return "" if moment is None else f"{duration(max(0.0, time.time() - moment))} ago"


def size(number: float) -> str:
    """Bytes, in their largest unit."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= length:
            return f"{number / length:,.1f} {unit}"
    return f"{number:.0f} bytes"
