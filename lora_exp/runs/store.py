"""All the run folders of an outputs folder."""

from __future__ import annotations

from pathlib import Path

from lora_exp.errors import UserError, nearest
from lora_exp.runs.folder import RunFolder


def all_runs(outputs: Path) -> list[RunFolder]:
    """Every run, by name."""
    folder = outputs / "runs"
    if not folder.is_dir():
        return []
    return [RunFolder(path) for path in sorted(folder.iterdir()) if path.is_dir()]


def find_run(outputs: Path, wanted: str) -> RunFolder:
    """The run with this path, name or signature, or the only one that begins so.

    Raises:
        UserError: if there is none, or more than one.
    """
    runs = all_runs(outputs)
    name = Path(wanted).name
    exact = [run for run in runs if name in (run.name, run.name.rsplit("-", 1)[-1])]
    matching = exact or [
        run
        for run in runs
        if run.name.startswith(name) or run.name.rsplit("-", 1)[-1].startswith(name)
    ]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = "\n".join(f"  {run.name}" for run in matching)
        raise UserError(f"{wanted}: {len(matching)} runs begin so; which one?\n{names}")
    if not runs:
        raise UserError(f"{wanted}: there are no runs in {outputs / 'runs'} (--outputs DIR).")
    options = [run.name for run in runs]
    raise UserError(f"{wanted}: no such run in {outputs}. {nearest(wanted, options, kind='runs')}")
