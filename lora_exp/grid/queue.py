"""Who gets which run: packs, fair shares, and what to do with runs whose worker died."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RETURNS = 2
"""A run that came back from so many workers is left for later."""
CRASHES = 2
"""A run that killed so many workers is not given to another one."""


@dataclass
class Ticket:
    """A run in the queue."""

    path: Path
    """Its folder."""
    key: str | None = None
    """Runs with the same key can train together; None: alone."""
    most: int | None = None
    """Most runs that may train together with it, itself included."""
    label: str | None = None
    """Of the pack it was in before."""
    state: str = "pending"
    """`pending`; `given` to a worker; or as it ended: done, failed, preempted or busy."""
    worker: int | None = None
    """That has it."""
    crashes: int = 0
    """Workers that died with it."""
    returns: int = 0
    """Workers that left it before its end."""


@dataclass
class Queue:
    """The runs of a grid, in order, and the workers that live."""

    tickets: Sequence[Ticket]
    workers: set[int] = field(default_factory=set)
    peers: int = 1
    """Coordinators, on several nodes, that work on the same runs."""

    def __post_init__(self) -> None:
        self._by_path = {ticket.path: ticket for ticket in self.tickets}

    @property
    def pending(self) -> list[Ticket]:
        """What no worker has."""
        return [ticket for ticket in self.tickets if ticket.state == "pending"]

    def held(self, worker: int) -> list[Ticket]:
        """What a worker has."""
        return [ticket for ticket in self.tickets if ticket.worker == worker]

    def take(self, worker: int, like: Path | None, number: int) -> list[Path]:
        """Runs for a worker that asks.

        Args:
            worker: that asks.
            like: a run that it has: only what can train together with it; None: any one run.
            number: most runs that it wants.
        """
        chosen = self._first(worker) if like is None else self._company(worker, self._by_path[like])
        chosen = chosen[: max(0, number)]
        for ticket in chosen:
            ticket.state, ticket.worker = "given", worker
        return [ticket.path for ticket in chosen]

    def ended(self, path: Path, state: str) -> None:
        """A worker is through with a run, for good."""
        ticket = self._by_path[path]
        ticket.state, ticket.worker = state, None

    def give_back(self, path: Path) -> None:
        """A run did not reach its worker."""
        ticket = self._by_path[path]
        ticket.state, ticket.worker = "pending", None

    def came_back(self, path: Path, label: str | None) -> None:
        """A worker left a run before its end: it is given again, but only once, or it would come
        and go for ever where the disk is full.

        Args:
            path: of the run.
            label: of its last pack.
        """
        ticket = self._by_path[path]
        ticket.returns += 1
        ticket.state = "pending" if ticket.returns < RETURNS else "preempted"
        ticket.worker = None
        ticket.label = label or ticket.label

    def died(self, worker: int) -> list[Ticket]:
        """A worker has died: what it had goes back, from now on each run alone.

        Returns:
            What it had. A run that was in `CRASHES` such workers, in the last one alone, is
            `failed` now.
        """
        self.workers.discard(worker)
        lost = self.held(worker)
        for ticket in lost:
            ticket.crashes += 1
            ticket.state = "failed" if ticket.crashes >= CRASHES else "pending"
            ticket.worker = ticket.key = ticket.label = None
        return lost

    def _first(self, worker: int) -> list[Ticket]:
        """The first run, if it can be none of a pack that another worker is busy with."""
        pending = self.pending
        busy = {ticket.label for ticket in self.tickets if ticket.worker not in (None, worker)}
        free = [t for t in pending if t.label is None or t.label not in busy]
        return (free or pending)[:1]

    def _company(self, worker: int, like: Ticket) -> list[Ticket]:
        """What trains together with a run: the rest of its former pack, and a fair share.

        The former pack stays together, since a resumed run equals the uninterrupted one to the
        last bit only in the same company.
        """
        if like.key is None:
            return []
        same = [ticket for ticket in self.pending if ticket.key == like.key]
        former = [t for t in same if t.label is not None and t.label == like.label]
        unlabelled = [ticket for ticket in same if ticket.label is None]
        others = [t for t in same if t.label is not None and t.label != like.label]

        given = [ticket for ticket in self.tickets if ticket.worker is not None]
        elsewhere = {ticket.worker for ticket in given if ticket.key != like.key}
        of_key = len(same) + sum(ticket.key == like.key for ticket in given)
        able = len(self.workers - elsewhere) * self.peers
        has = len(self.held(worker))
        share = -(-of_key // max(1, able)) - has - len(former)
        chosen = former + (unlabelled or others)[: max(0, share)]
        return chosen if like.most is None else chosen[: max(0, like.most - has)]
