"""Where the runs of a grid stand, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from lora_exp.grid.plan import PlannedRun, distinguishing

WORDS = {
    "done": "done",
    "before": "done before",
    "failed": "failed",
    "busy": "running elsewhere",
    "preempted": "preempted",
    "queued": "queued",
}
"""The states, in the order in which they are counted, as people read them."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a grid ended."""

    run: PlannedRun
    state: str
    """A key of `WORDS`."""
    result: dict[str, Any] | None
    """`result.json` of a run that is done."""
    reason: str
    """Why there is none."""

    @classmethod
    def of(cls, run: PlannedRun, state: str) -> Self:
        """
        Args:
            run: of the grid.
            state: as the queue knows it.
        """
        written = run.folder.status
        if state in ("pending", "given"):
            state = "queued" if written["state"] == "queued" else "preempted"
        if run.done:
            state = "before"
        reason = str(written.get("reason") or "") if state == "failed" else WORDS[state]
        return cls(run, state, run.folder.result, reason)


def show(outcomes: Sequence[Outcome]) -> None:
    """A table of the runs, in the order of the grid, and how many there are of each state."""
    names = distinguishing([outcome.run.overrides for outcome in outcomes])
    table = Table(box=None)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    table.add_column("metrics", overflow="fold")
    for name, outcome in zip(names, outcomes, strict=True):
        metrics = (outcome.result or {}).get("metrics", {})
        numbers = [f"{key} {value:.4f}" for key, value in metrics.items() if key[:4] != "loss"]
        last = outcome.reason if outcome.state == "failed" else "  ".join(numbers)
        table.add_row(name or outcome.run.folder.name, WORDS[outcome.state], last)
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # for grep and awk: one line a run
    console.print(table)
    counts = Counter(outcome.state for outcome in outcomes)
    told = ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state])
    console.print(f"{len(outcomes)} run{'s' * (len(outcomes) != 1)}: {told}", highlight=False)
