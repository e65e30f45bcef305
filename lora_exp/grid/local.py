"""A grid on this machine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

from lora_exp.errors import UserError
from lora_exp.grid import detached, devices, notify, packs, plan, stages
from lora_exp.grid.coordinator import Coordinator
from lora_exp.grid.devices import Device
from lora_exp.grid.plan import Point
from lora_exp.grid.queue import Queue
from lora_exp.grid.table import Live, Outcome, outcomes, show, show_plan
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid

log = logging.getLogger("lora_exp")
LOCAL = {"name": "local"}
"""The launcher, as a grid's record has it."""


class Stopped(SystemExit):
    """A signal ended the grid; every run is saved. Exit status 128 + the signal's number."""

    def __init__(self, number: signal.Signals, states: dict[str, str]) -> None:
        super().__init__(128 + number)
        self.states = states


def train(points: Sequence[Point], study: str | None = None) -> list[Outcome]:
    """Train the runs that the points come to, show where each of them stands at the end, and tell
    whoever wants to know that they have ended.

    Args:
        points: of the grid.
        study: that they are of, if any.

    Returns:
        For each point, how its run ended.

    Raises:
        UserError: for what is wrong with the points, before anything is written.
        Stopped: after a signal.
    """
    ended, grid = _train(points, study)
    if grid is not None:
        notify.ended(grid)
    return ended


def _train(points: Sequence[Point], study: str | None = None) -> tuple[list[Outcome], Grid | None]:
    """How the run of each point ended, and the grid, if there was something to train here."""
    planned = plan.make(points)
    found = devices.choose(planned.device)[: len(planned.to_train)]
    if planned.dry_run:
        show_plan(planned, len(found), f"workers: {_described(found)}")
        return planned.for_points(outcomes(planned, {})), None
    planned.settle()
    names = sorted({device.name for device in found if device.name})
    gpu = ", ".join(names) or None
    if not planned.to_train:
        if planned.joins:
            plan.freeze(planned, LOCAL, gpu, study)
        ended = outcomes(planned, {})
        show(ended)
        return planned.for_points(ended), None
    grid = plan.freeze(planned, LOCAL, gpu, study)
    runs = [run.folder for run in planned.to_train]
    stopped = None
    if planned.detach:
        detached.start(grid)
        states = {run.name: "queued" for run in runs}
    else:
        try:
            states = train_runs(grid, runs)
        except Stopped as stop:
            states, stopped = stop.states, stop
    ended = outcomes(planned, states)
    show(ended)
    if stopped is not None:
        raise stopped
    if not planned.detach:
        ended[len(planned.runs) :] = train_later(grid) or ended[len(planned.runs) :]
    return planned.for_points(ended), None if planned.detach else grid


def train_later(grid: Grid) -> list[Outcome]:
    """Train what has waited for the runs of a grid that have ended; none if there is nothing, or
    nothing that it could start from."""
    points = [Point(one.overrides, one.config) for one in stages.take(grid)]
    try:
        return _train(points)[0] if points else []
    except UserError as error:
        log.error("What waits cannot start: %s", error)
        return []


def train_runs(grid: Grid, runs: Sequence[RunFolder]) -> dict[str, str]:
    """Train runs whose folders there are already.

    Args:
        grid: of which they are.
        runs: in order.

    Returns:
        For the name of each run how it ended: a state, or `busy` if another process trains it.

    Raises:
        UserError: if there is no such device here as they want.
        Stopped: after a signal.
    """
    tickets = packs.tickets(runs)
    found = devices.choose(runs[0].config.device)[: len(runs)]
    log.info(
        "Grid %s: %d of %d runs to train; workers: %s.",
        grid.name,
        len(runs),
        len(grid.record["runs"]),
        _described(found),
    )
    with Live.of(grid.name, tickets) as look:
        coordinator = Coordinator(Queue(tickets), found, look)
        coordinator.run()
    states = {ticket.path.name: ticket.state for ticket in tickets}
    if coordinator.stopped is not None:
        raise Stopped(coordinator.stopped, states)
    return states


def _described(found: Sequence[Device]) -> str:
    names = sorted({device.name for device in found if device.name})
    return f"{len(found)} ({', '.join(names) or 'CPU, one thread each'})"
