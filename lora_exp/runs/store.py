"""All the run folders of an outputs folder."""

from __future__ import annotations

from pathlib import Path

from lora_exp.errors import UserError, nearest
from lora_exp.runs.config import Config
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.signature import slug


def all_runs(outputs: Path) -> list[RunFolder]:
    """Every run, by name."""
    folder = outputs / "runs"
    if not folder.is_dir():
        return []
    paths = (path for path in sorted(folder.iterdir()) if path.name.isprintable())
    return [RunFolder(path) for path in paths if path.is_dir()]


def folder_of(outputs: Path, config: Config, signature: str) -> RunFolder:
    """The folder of a run: the one with its signature, whatever else it is called, or a new one."""
    known = sorted((outputs / "runs").glob(f"*-{signature}"))
    return RunFolder(known[0] if known else outputs / "runs" / f"{slug(config)}-{signature}")


def find_run(outputs: Path, wanted: str) -> RunFolder:
    """The run with this path, name or signature, or the only one that begins so.

    Raises:
        UserError: if there is none, or more than one.
    """
    if (Path(wanted) / "config.yaml").is_file():
        return RunFolder(Path(wanted).absolute())
    runs = all_runs(outputs)
    name = Path(wanted).name
    exact = [run for run in runs if name in (run.name, run.signature)]
    matching = exact or [
        run for run in runs if run.name.startswith(name) or run.signature.startswith(name)
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
