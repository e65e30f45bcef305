"""What the user may say and what he sees: lines, a progress bar where there is a terminal, a
result."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from lora_exp.runs.bounds import printable
from lora_exp.runs.secrets import hidden

VERBS = (
    "plan",
    "status",
    "show",
    "logs",
    "report",
    "compare",
    "cancel",
    "retry",
    "rerun",
    "clean",
    "sync",
    "dashboard",
    "predict",
    "export",
    "import",
    "card",
    "push",
    "completion",
)
"""What the first word of a command may be, if it is no override."""
console = Console(stderr=True, highlight=False)
console.soft_wrap = not console.is_terminal  # lines for people fit the terminal; others stay whole
log = logging.getLogger("lora_exp")
REDRAW_SECONDS = 0.1


class _Lines(logging.Handler):
    """Log records as plain lines, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else ""
        run = getattr(record, "run", "")
        text = printable(hidden(record.getMessage()))
        if run:
            text = "\n".join(f"{run}  {line}" for line in text.splitlines())
        console.print(text, markup=False, style=style)


class _Kept(logging.Formatter):
    """What is kept of the log, which may tell of anything that went wrong."""

    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record))


def set_up(*, alone: bool = True) -> None:
    """Send the package's log to the console; called once, by the command line.

    Args:
        alone: no other process writes to the terminal; otherwise there are lines and no bars.
    """
    global console
    if not alone:
        console = Console(stderr=True, highlight=False, force_terminal=False, soft_wrap=True)
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        log.addHandler(_Lines())


def shown(path: Path) -> str:
    """A path as people want to read it: short where it lies below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def verb(words: str, outputs: Path) -> str:
    """The command line of a verb about these outputs."""
    place = shown(outputs.absolute())
    more = "" if place == "outputs" else f" --outputs {shlex.quote(place)}"
    return f"python -m lora_exp {words}{more}"


class _LogFile(logging.FileHandler):
    """What there is no room for is left out: no run ends because of its log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


_of_runs: WeakValueDictionary[str, logging.Logger] = WeakValueDictionary()


def log_of(signature: str) -> logging.Logger:
    """The part of the log that is about a run, gone with it: `logging.getLogger` would keep one for
    each run that a worker ever had."""
    found = _of_runs.get(signature)
    if found is None:
        found = _of_runs[signature] = logging.Logger(signature)
        found.parent = log
    return found


@contextmanager
def also_to(path: Path, logger: logging.Logger = log) -> Iterator[None]:
    """Append the log, or the part of it that goes through `logger`, to a file meanwhile."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(_Kept("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Bars(Progress):
    """Redrawn by the thread that works, so that no other writes between its lines."""

    drawn = 0.0

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        now = time.monotonic()
        if now - self.drawn >= REDRAW_SECONDS:
            self.drawn = now
            self.refresh()


def progress() -> Progress:
    """Bars for training and evaluation; shows nothing where there is no terminal."""
    return _Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    )


def show_result(result: dict[str, Any]) -> None:
    """A table of a run's result, for the terminal."""
    table = Table(box=None, show_header=False)
    for name, value in result["metrics"].items():
        if not name.startswith("loss"):
            table.add_row(name, f"{value:.4f}")
    table.add_row("best epoch", f"{result['best_epoch']:g}")
    table.add_row("trained parameters", f"{result['trainable_parameters']:,}")
    table.add_row("training time", f"{result['train_seconds']:.1f} s")
    if "sources_per_second" in result:
        table.add_row("generating", f"{result['sources_per_second']:g} sources/s")
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB")
    Console().print(table)
