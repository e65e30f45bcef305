"""What is written down of a grid: which runs it has, how it was started, its jobs on a cluster."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from lora_exp.errors import UserError
from lora_exp.runs import bounds, files
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.shapes import is_grid

ENDED = ("done", "failed", "cancelled")
"""States of runs that are not taken up before somebody asks for it."""


class Grid:
    """`outputs/grids/NAME/`; a run may belong to several grids.

    =========== =============================================================== =================
    grid.json   name, command, study, created, launcher and its settings, runs   at submission
    jobs.jsonl  a line for each job of a cluster                                 appended
    log.txt     what a grid in the background, or its jobs, had to say           appended
    =========== =============================================================== =================
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.outputs = path.parent.parent
        self.log = path / "log.txt"
        self._jobs = path / "jobs.jsonl"

    @classmethod
    def create(
        cls,
        outputs: Path,
        name: str | None,
        runs: Sequence[RunFolder],
        launcher: dict[str, Any],
        **more: Any,
    ) -> Self:
        """Write a grid down. One with this name is joined: its runs, and what waits for them, stay;
        further ones follow.

        Args:
            outputs: the folder of all runs.
            name: None: made from the time.
            runs: in order.
            launcher: its `name`, `local` or `slurm`, and its settings.
            more: for the record: command, study, snapshot, `later`, what waits for runs.

        Raises:
            UserError: for a name that it cannot have.
        """
        check_name(name)
        grids = outputs / "grids"
        grids.mkdir(parents=True, exist_ok=True)
        with _locked(grids) as alone:  # two commands may join it at once
            if alone:
                _remove_unfinished(grids)
            grid = cls(grids / (name or _unused(grids)))
            grid.path.mkdir(exist_ok=True)
            before = grid.record
            runs_before, later_before = before.get("runs", []), before.get("later", [])
            later = [one for one in more.pop("later", []) if one not in later_before]
            record = {
                "name": grid.name,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "cwd": str(Path.cwd()),
                "launcher": launcher,
                "study": before.get("study"),  # whoever joins it
                **more,
                "later": later_before + later,
                "runs": list(dict.fromkeys([*runs_before, *(run.name for run in runs)])),
            }
            files.write_json(grid.path / "grid.json", record)
        return grid

    def take_later(self) -> list[dict[str, Any]]:
        """What waits for runs of the grid, as it was written down; only one process gets it."""
        with _locked(self.path.parent):
            record = self.record
            later = record.pop("later", [])
            if later:
                files.write_json(self.path / "grid.json", record)
        return later

    @property
    def record(self) -> dict[str, Any]:
        """`grid.json`, empty where it is missing or damaged."""
        try:
            value = files.read_json(self.path / "grid.json")
        except (ValueError, RecursionError):
            return {}
        return value if value is not None and is_grid(value) else {}

    @property
    def runs(self) -> list[RunFolder]:
        """In order; those that were cleaned away are left out."""
        folders = (self.outputs / "runs" / name for name in self.record["runs"])
        return [RunFolder(path) for path in folders if path.is_dir()]

    @property
    def left(self) -> list[RunFolder]:
        """Those that have not come to an end."""
        return [run for run in self.runs if run.status["state"] not in ENDED]

    @property
    def launcher(self) -> dict[str, Any]:
        """How it was started: `name`, `local` or `slurm`, and settings."""
        return self.record["launcher"]

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Of the cluster, in the order in which they were submitted: `job` and what was said of
        each."""
        if not self._jobs.exists():
            return []
        jobs = []
        for line in self._jobs.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):  # a crash cut it short
                job = json.loads(line)
                if isinstance(job, dict) and isinstance(job.get("job"), str):
                    jobs.append(job)
        return jobs

    def add_job(self, **fields: Any) -> None:
        """Write a job down: `job` is its number, `tasks` how many it has."""
        whole = not self._jobs.exists() or self._jobs.read_bytes().endswith(b"\n")
        with self._jobs.open("a", encoding="utf-8") as file:
            line = json.dumps({"submitted": time.time()} | fields)
            file.write(f"{line}\n" if whole else f"\n{line}\n")
            file.flush()
            os.fsync(file.fileno())


def check_name(name: str | None) -> None:
    """See whether a grid can have this name.

    Raises:
        UserError: if it cannot.
    """
    if name is not None and not bounds.is_name(name):
        raise UserError(f"grid={name}: a name is made of letters, digits, and - _ .")


def all_grids(outputs: Path) -> list[Grid]:
    """Every grid, by name."""
    folder = outputs / "grids"
    if not folder.is_dir():
        return []
    return [grid for path in sorted(folder.iterdir()) if (grid := Grid(path)).record]


@contextmanager
def _locked(grids: Path) -> Iterator[bool]:
    """Let no other process write a grid's record meanwhile; False where there are no locks."""
    with (grids / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _remove_unfinished(grids: Path) -> None:
    """Remove what a process left that died while it wrote a grid down; nobody is writing one."""
    for folder in grids.iterdir():
        with suppress(OSError):  # it holds something
            (folder / f"grid.json{files.TEMPORARY}").unlink(missing_ok=True)
            folder.rmdir()


def _unused(grids: Path) -> str:
    base = name = time.strftime("%Y%m%d-%H%M%S")
    number = 1
    while True:
        try:
            (grids / name).mkdir()
            return name
        except FileExistsError:
            number += 1
            name = f"{base}-{number}"
