"""`clean`: what nobody needs any more, removed after a look at the list."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.lease import RunBusy
from lora_exp.runs.records import UNFINISHED, Records
from lora_exp.runs.selector import Selector
from lora_exp.text import columns, size
from lora_exp.verbs.arguments import Filter, Outputs

CLEANED = ("failed", "cancelled")


@dataclass(frozen=True)
class Item:
    """A folder that may go."""

    path: Path
    what: str
    bytes: int
    state: str | None = None
    """Of a run: it goes only if it is still in this state."""


def clean(filters: Filter = None, outputs: Outputs = Path("outputs")) -> None:
    """Remove results that were superseded, and runs that failed or were cancelled.

    Without a filter also code snapshots that no run needs, and the cache of tokens, which fills
    itself again. What would go is listed, and goes if you type yes.
    """
    selector = Selector.parse(filters or ())
    items = _items(Records(outputs), selector)
    if not items:
        among = f" among {selector}" if selector else ""
        typer.echo(
            f"There is nothing to clean{among}: no superseded results, failed or cancelled runs."
        )
        return
    rows = [[str(item.path.relative_to(outputs)), item.what, size(item.bytes)] for item in items]
    typer.echo(columns(["folder", "what", "size"], rows))
    total = size(sum(item.bytes for item in items))
    typer.echo(f"\n{len(items):,} folders, {total}. Type yes to remove them: ", nl=False)
    if sys.stdin.readline().strip() != "yes":
        typer.echo("Nothing was removed.")
        return
    still = {item.path for item in _items(Records(outputs), selector)}  # it may have taken long
    left = [item for item in items if item.path not in still or not _remove(item)]
    for item in left:
        what = RunFolder(item.path).status["state"] if item.state else "needed"
        typer.echo(f"{item.path}: left, since it is {what} now.")
    typer.echo(f"Removed: {len(items) - len(left):,} folders.")


def _items(records: Records, selector: Selector) -> list[Item]:
    """What may go at this moment."""
    items = [*_runs(records, selector)]
    if not selector:
        items += _snapshots(records, {item.path for item in items})
        items += _cache(records.outputs)
    return items


def _runs(records: Records, selector: Selector) -> Iterator[Item]:
    for run in records.inside(records.outputs / "superseded"):
        if selector.matches(run):
            yield Item(run.folder.path, "superseded result", _bytes(run.folder.path))
    for run in records.runs:
        if run.status["state"] in CLEANED and selector.matches(run):
            state = run.status["state"]
            yield Item(run.folder.path, state, _bytes(run.folder.path), state)


def _snapshots(records: Records, going: set[Path]) -> Iterator[Item]:
    """The code snapshots of no run that stays, and of no grid that goes on."""
    from lora_exp.grid.submission import Submission

    runs = [*records.runs, *records.inside(records.outputs / "superseded")]
    staying = [run for run in runs if run.folder.path not in going]
    needed = {run.origin.get("snapshot") for run in staying}
    unfinished = [run for run in staying if run.status["state"] in UNFINISHED]
    for grid in {grid.path: grid for run in unfinished for grid in run.grids}.values():
        needed.add(records.grid_records[grid.name].get("snapshot"))
        for record in (grid.path / "jobs").glob("*/submission.json"):
            needed.add(Path(Submission(record.parent).record["code"]).name)
    for folder in _folders(records.outputs / "snapshots"):
        if folder.name not in needed:
            yield Item(folder, "code of no run", _bytes(folder))


def _cache(outputs: Path) -> Sequence[Item]:
    folder = outputs / "cache" / "tokens"
    return [Item(folder, "cache of tokens", _bytes(folder))] if folder.is_dir() else []


def _remove(item: Item) -> bool:
    """Remove a folder; a run only if nobody trains it meanwhile, or has queued it again."""
    if item.path.is_symlink():  # what it leads to is not ours to remove
        item.path.unlink()
        return True
    if item.state is None:
        shutil.rmtree(item.path)
        return True
    folder = RunFolder(item.path)
    with suppress(RunBusy), folder.lock():
        if folder.status["state"] == item.state:
            shutil.rmtree(item.path)
            return True
    return False


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _bytes(folder: Path) -> int:
    """What a folder holds."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_size
    return total
