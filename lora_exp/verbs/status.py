"""`status`: the runs, and where they stand."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lora_exp.errors import UserError, nearest
from lora_exp.runs import bounds
from lora_exp.runs.records import LOST, UNFINISHED, Records, RunRecord
from lora_exp.runs.selector import STATES, Selector
from lora_exp.text import ago, columns, count, counted, duration, numbers, reason
from lora_exp.verbs.arguments import Filter, Outputs

LISTED = 300
"""Most runs that are listed one by one if nobody chose them."""
FAILURES_LISTED = 20
"""Most runs whose failures a summary tells."""
WATCH_SECONDS = 5.0
TAIL_BYTES = 8192
"""Of metrics.jsonl, in which the last evaluation is looked for."""


def status(
    filters: Filter = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again and again, until all have ended.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="A line for each grid, group or state.")] = None,
    outputs: Outputs = Path("outputs"),
) -> None:
    """The runs, and where they stand; nothing is changed.

    A state that no file has is `lost`: the run should go on, and there is nothing that would do it.
    """
    if by is not None and by not in KEYS:
        raise UserError(f"--by {by}: {nearest(by, KEYS)}")
    selector = Selector.parse(filters or ())
    if watch:
        _watch(selector, by, outputs)
    else:
        typer.echo(_page(selector, by, outputs)[0])


def _watch(selector: Selector, by: str | None, outputs: Path) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            page, goes_on = _page(selector, by, outputs)
            text = Text.from_ansi(page + time.strftime("\n%H:%M:%S"), no_wrap=True)
            live.update(text, refresh=True)
            if not goes_on:
                return
            time.sleep(WATCH_SECONDS)


def _page(selector: Selector, by: str | None, outputs: Path) -> tuple[str, bool]:
    """What there is to see, and whether it will change of itself."""
    records = Records(outputs)
    if not records.runs:
        return f"There are no runs in {outputs / 'runs'}.", False
    chosen = selector.among(records.runs)
    if not chosen:
        return f"None of {count(len(records.runs))} is meant by {selector}.", False
    return told(chosen, by, narrowed=bool(selector)), any(run.state in UNFINISHED for run in chosen)


def told(runs: Sequence[RunRecord], by: str | None = None, *, narrowed: bool = False) -> str:
    """Where runs stand: one by one, or if they are many summed up.

    Args:
        runs: at least one.
        by: `grid`, `group` or `state`: summed up so, even a few.
        narrowed: the user chose them: one by one, even if they are many.
    """
    if by is None and (narrowed or len(runs) <= LISTED):
        parts = [_list(runs)]
    else:
        parts = [_summary(runs, by or "grid"), _failures(runs)]
        if by is None:
            parts.append("A filter lists them one by one: status state=running, status grid=NAME")
    parts.append(counted(runs))
    damaged = [f"{run.name} ({', '.join(run.damaged)})" for run in runs if run.damaged]
    if damaged:
        parts.append(f"Damaged, and read as if they were not there: {', '.join(damaged)}")
    return "\n\n".join(part for part in parts if part)


# -- run by run ------------------------------------------------------------------------------------


def _list(runs: Sequence[RunRecord]) -> str:
    header = ["run", "state", "progress", "metrics", "last seen", "left", "reason"]
    return columns(header, [_row(run) for run in runs])


def _row(run: RunRecord) -> list[str]:
    written = run.status
    progress = f"{written.get('step', 0)}/{written.get('total_steps', '?')}"
    left = _left(run)
    return [
        run.name,
        run.state,
        progress,
        _metrics(run),
        ago(written.get("heartbeat")),
        "" if left is None else duration(left),
        reason(run),
    ]


def _metrics(run: RunRecord) -> str:
    """Those of the result; of a run that goes on, those of the last evaluation."""
    if run.state == "done":
        return numbers((run.result or {}).get("metrics", {}))
    if not run.status.get("step"):
        return ""
    try:
        with run.folder.metrics_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        if line.startswith("{") and line.endswith("}\n"):
            try:
                values = bounds.plain(json.loads(line))
            except (ValueError, RecursionError):
                continue
            if values.get("split", "train") != "train":
                told = {key: value for key, value in values.items() if key not in _POSITION}
                return numbers(told)
    return ""


_POSITION = {"step", "epoch", "seconds", "split"}


def _left(run: RunRecord) -> float | None:
    """Seconds that a running run still takes, by what its steps have taken so far."""
    written = run.status
    step, total, seconds = (written.get(key) for key in ("step", "total_steps", "seconds"))
    if run.state != "running" or not (step and total and seconds):
        return None
    since = time.time() - written.get("heartbeat", time.time())
    return max(0.0, seconds / step * (total - step) - since)


# -- many at once ----------------------------------------------------------------------------------


def _grid(run: RunRecord) -> str:
    return run.grids[-1].name if run.grids else "(none)"


def _group(run: RunRecord) -> str:
    name = run.name.removesuffix(f"-{run.signature}").rpartition("-seed")[0] or run.name
    return f"{name} {run.group}"


KEYS = {"grid": _grid, "group": _group, "state": lambda run: run.state}


def _summary(runs: Sequence[RunRecord], by: str) -> str:
    """A line for each grid, group or state: how many runs of each state there are."""
    of: dict[str, list[RunRecord]] = {}
    for run in runs:
        of.setdefault(KEYS[by](run), []).append(run)
    header = [by, "runs", *STATES, "left"]
    rows = []
    for name, members in sorted(of.items()):
        counts = Counter(run.state for run in members)
        cells = [
            f"{counts[state]:,}" if counts[state] and by != "state" else "" for state in STATES
        ]
        rows.append([name, f"{len(members):,}", *cells, _together(members)])
    return columns(header, rows)


def _together(runs: Sequence[RunRecord]) -> str:
    """How long runs take until all are done, if as many as now go on training at once."""
    running = [run for run in runs if run.state == "running"]
    took = [
        run.status["seconds"] for run in runs if run.state == "done" and "seconds" in run.status
    ]
    known = [left for run in running if (left := _left(run)) is not None]
    waiting = sum(run.state in ("queued", "preempted") for run in runs)
    if not known or (waiting and not took):
        return ""
    average = sum(took) / len(took) if took else 0.0
    rest = sum(known) / len(known) * len(running) + average * waiting
    return duration(max(rest / len(running), *known))


def _failures(runs: Sequence[RunRecord]) -> str:
    failed = [run for run in runs if run.state in ("failed", LOST)]
    rows = [[run.name, run.state, reason(run)] for run in failed[:FAILURES_LISTED]]
    if not rows:
        return ""
    more = len(failed) - len(rows)
    hint = f"\nand {more:,} more: status state=failed,lost" if more else ""
    return columns(["run", "state", "reason"], rows) + hint
