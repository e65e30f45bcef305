"""Where the runs of a grid stand, for people."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live as Redrawn
from rich.table import Table
from rich.text import Text

from lora_exp import console
from lora_exp.grid.estimate import seconds
from lora_exp.grid.plan import Plan, PlannedRun, distinguishing
from lora_exp.grid.queue import Ticket
from lora_exp.runs.folder import RunFolder

WORDS = {
    "new": "new",
    "done": "done",
    "before": "done before",
    "failed": "failed",
    "failed before": "failed before",
    "busy": "running elsewhere",
    "preempted": "preempted",
    "cancelled": "cancelled",
    "queued": "queued",
    "waiting": "waits for others",
}
"""The states, in the order in which they are counted, as people read them."""
LIVE_SECONDS = 0.5
"""Between two looks at the runs of a grid."""
LIVE_ROWS = 20


@dataclass(frozen=True)
class Outcome:
    """How a run of a grid ended."""

    overrides: list[str]
    folder: RunFolder | None
    """None as long as it waits for others, from which it is to start."""
    state: str
    """A key of `WORDS`."""
    result: dict[str, Any] | None
    """`result.json` of a run that is done."""
    reason: str
    """Why there is none."""

    @classmethod
    def of(cls, run: PlannedRun, state: str | None) -> Self:
        """
        Args:
            run: of the grid.
            state: as the queue knows it; None if it was not in it.
        """
        written = run.folder.status
        if run.done:
            state = "before"
        elif run.failed:
            state = "failed before"
        elif state is None:
            state = run.before if run.before in ("new", "busy") else "queued"
        elif state in ("pending", "given"):
            state = "queued" if written["state"] == "queued" else "preempted"
        elif state == "busy" and written["state"] in ("done", "failed", "cancelled"):
            state = written["state"]  # the other process has ended it by now
        failed = state.startswith("failed")
        reason = str(written.get("reason") or "") if failed else WORDS[state]
        return cls(run.overrides, run.folder, state, run.folder.result, reason)


def outcomes(plan: Plan, states: dict[str, str]) -> list[Outcome]:
    """How each run of a grid ended, and those that wait; `states` as the queue knows them, by
    name."""
    ended = [Outcome.of(run, states.get(run.folder.name)) for run in plan.runs]
    reason = "waits for the runs that it may start from"
    return ended + [Outcome(one.overrides, None, "waiting", None, reason) for one in plan.later]


def show(ended: Sequence[Outcome]) -> None:
    """A table of the runs, in the order of the grid, and how many there are of each state."""
    names = distinguishing([outcome.overrides for outcome in ended])
    table = Table(box=None)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    table.add_column("metrics", overflow="fold")
    for name, outcome in zip(names, ended, strict=True):
        metrics = (outcome.result or {}).get("metrics", {})
        numbers = [f"{key} {value:.4f}" for key, value in metrics.items() if key[:4] != "loss"]
        why = next(iter(outcome.reason.splitlines()), "")
        last = why if outcome.state.startswith("failed") else "  ".join(numbers)
        own = outcome.folder.name if outcome.folder else " ".join(outcome.overrides)
        table.add_row(Text(name or own), WORDS[outcome.state], Text(last))  # [a,b] is no markup
    out = output()
    out.print(table)
    out.print(counted(Counter(outcome.state for outcome in ended)), highlight=False)
    failed = [one.folder for one in ended if one.state == "failed before" and one.folder]
    if failed:
        hint = console.verb("retry state=failed", failed[0].path.parent.parent)
        out.print(
            f"What failed before is not trained again by itself: {hint}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def show_plan(plan: Plan, workers: int, resources: str) -> None:
    """What a grid comes to.

    Args:
        plan: of the grid.
        workers: that train at the same time.
        resources: on which.
    """
    show(outcomes(plan, {}))
    if not plan.to_train:
        return
    together = [len(pack) for pack in plan.packs() if len(pack) > 1]
    lines = [
        f"{len(plan.to_train)} to train; together, as far as memory allows: "
        + (", ".join(map(str, together)) or "none"),
        resources,
    ]
    known = seconds(plan.to_train, plan.outputs)
    if known:
        hours = sum(known) / len(known) * len(plan.to_train) / 3600
        lines.append(
            f"about {hours:.3g} hours of a device, {hours / workers:.3g} with {workers} at once "
            f"(there are comparable runs for {len(known)})"
        )
    output().print("\n".join(lines), highlight=False, markup=False)


def counted(states: Counter[str]) -> str:
    """`4 runs: 3 done, 1 failed`."""
    told = ", ".join(f"{states[state]} {word}" for state, word in WORDS.items() if states[state])
    return f"{states.total()} run{'s' * (states.total() != 1)}: {told}"


def output() -> Console:
    """The standard output: with one line a run where grep and awk read it."""
    out = Console()
    if not out.is_terminal:
        out.width = 1000
    return out


class Live:
    """The grid as it stands, redrawn on a terminal."""

    def __init__(self, name: str, tickets: Sequence[Ticket]) -> None:
        self._name, self._tickets = name, tickets
        self._began = time.monotonic()
        self._drawn = 0.0
        self._redrawn = Redrawn(console=console.console, auto_refresh=False, transient=True)

    @classmethod
    @contextmanager
    def of(cls, name: str, tickets: Sequence[Ticket]) -> Iterator[Callable[[], None] | None]:
        """What to call every now and then; None where there is no terminal."""
        if not console.console.is_terminal:
            yield None
            return
        live = cls(name, tickets)
        with live._redrawn:
            yield live.look

    def look(self) -> None:
        """Draw it anew, if it is time to."""
        now = time.monotonic()
        if now - self._drawn >= LIVE_SECONDS:
            self._drawn = now
            self._redrawn.update(self._table(), refresh=True)

    def _table(self) -> Group:
        states = Counter(ticket.state for ticket in self._tickets)
        waiting, given = states.pop("pending", 0), states.pop("given", 0)
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        ended = ", ".join(f"{number} {WORDS[state]}" for state, number in states.items())
        head = f"{self._name}  {minutes}:{seconds:02}  {waiting} waiting, {given} running"
        rows = Table(box=None, show_header=False)
        running = [ticket for ticket in self._tickets if ticket.state == "given"]
        for ticket in running[:LIVE_ROWS]:
            folder = RunFolder(ticket.path)
            status = folder.status
            total = status.get("total_steps")
            share = f"{100 * status.get('step', 0) / total:3.0f}%" if total else ""
            rows.add_row(folder.name, share, f"worker {ticket.worker}")
        return Group(Text(head + (f", {ended}" if ended else "")), rows)
