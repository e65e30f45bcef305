"""Thousands of run folders at a glance: what each holds, its grids, and where it stands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from yaml import YAMLError

from lora_exp.runs import bounds
from lora_exp.runs.cluster import GONE, Job, states
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid, all_grids
from lora_exp.runs.lease import is_held
from lora_exp.runs.shapes import CHECKS, is_config
from lora_exp.runs.values import load

UNFINISHED = ("queued", "running", "preempted")
LOST = "lost"
"""The state that no file has: the run should go on, and there is nothing that would do it."""
ESCAPES = re.compile(rb"\\u00[0189]|\\u[dD][89a-fA-F]|\x7f|\xc2[\x80-\x9f]")
"""JSON that may hold what no terminal should be given."""


class RunRecord:
    """What is written of one run. Each file is read once, when it is first asked for."""

    def __init__(self, path: str, records: Records) -> None:
        self._path = path
        self._records = records
        self.name = os.path.basename(path)  # noqa: PTH119 (ten times as fast as a Path)
        self.damaged: list[str] = []
        """The files that were read so far, and do not hold what they should."""
        self.signature = self.name.rsplit("-", 1)[-1]

    @property
    def folder(self) -> RunFolder:
        """The run itself, to be changed or read anew."""
        return RunFolder(Path(self._path))

    @cached_property
    def status(self) -> dict[str, Any]:
        """`status.json`; its state is `done` if there is a result, whatever was written."""
        written = self._read("status.json") or {}
        if written.get("state") != "done" and os.path.exists(f"{self._path}/result.json"):  # noqa: PTH110
            return written | {"state": "done"}
        return {"state": "queued"} | written

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """`result.json`, None while the run is not done."""
        return self._read("result.json")

    @cached_property
    def origin(self) -> dict[str, Any]:
        """`run.json`, empty where it is missing."""
        return self._read("run.json") or {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The whole config, nested; from config.yaml where run.json does not have it; empty if it
        is lost."""
        if (config := self.origin.get("config")) is not None:
            return config
        try:
            with open(f"{self._path}/config.yaml", encoding="utf-8") as file:  # noqa: PTH123
                config = load(file.read())
        except (OSError, UnicodeDecodeError, YAMLError):
            return {}
        return bounds.plain(config) if is_config(config) else {}

    @property
    def group(self) -> str:
        """Shared by the runs that differ from it in their seed alone."""
        return self.origin.get("group", "")

    @property
    def grids(self) -> list[Grid]:
        """The grids that it is of, the newest last."""
        return self._records.grids_of.get(self.name, [])

    @property
    def studies(self) -> list[str]:
        """The studies that its grids are of."""
        records = [self._records.grid_records[grid.name] for grid in self.grids]
        return [study for record in records if (study := record.get("study"))]

    @property
    def state(self) -> str:
        """As written; `lost` if it should go on, and there is nothing that would do it."""
        return self._standing[0]

    @property
    def why(self) -> str:
        """The reason of a state, where there is one to tell: of a failure, a loss, a wait."""
        return self._standing[1]

    @cached_property
    def _standing(self) -> tuple[str, str]:
        written = self.status
        state, why = written["state"], str(written.get("reason") or "")
        if state == "done" and self.result is None:
            return "failed", "result.json is damaged; bring it back, or remove it and retry"
        found = self._doubt(state)
        if found is None:
            return state, why
        if found[0] == LOST:  # unless it has come to an end while we asked
            now = RunFolder(Path(self._path)).status
            if now["state"] != state:
                self.status = now
                return now["state"], str(now.get("reason") or "")
            if self.folder.cancel_requested:  # which nobody is left to heed
                return "cancelled", found[1]
        return found

    def _doubt(self, state: str) -> tuple[str, str] | None:
        """What is to be said of a state instead of what was written."""
        if state == "running":
            return self._doubt_running()
        if state in UNFINISHED:
            return self._doubt_waiting(state)
        return None

    def _doubt_running(self) -> tuple[str, str] | None:
        name = self.status.get("job")
        job = self._records.job(name) if name else None
        if job is not None and job.waiting:
            return "preempted", f"job {name} is to start again ({job.reason})"
        if job is not None and job.ended:
            return LOST, f"job {name}: {job.state}"
        try:
            held = is_held(RunFolder(Path(self._path)).leases)
        except OSError:  # not ours to look at
            held = True
        if held:
            return None
        return LOST, f"process {self.status.get('pid')} on {self.status.get('host')} is gone"

    def _doubt_waiting(self, state: str) -> tuple[str, str] | None:
        jobs: dict[str, Job] = {}
        for grid in self.grids:
            if self._records.grid_records[grid.name]["launcher"]["name"] != "slurm":
                return None  # a command on this machine may be about to take it up
            jobs |= self._records.jobs_of(grid)
        if not jobs:
            return None
        if all(job.ended for job in jobs.values()):
            return LOST, f"no job of grid {self.grids[-1].name} is left"
        if any(job.state == "RUNNING" for job in jobs.values()):
            return None
        name, waiting = next(
            ((name, job) for name, job in jobs.items() if job.waiting), (None, None)
        )
        return None if waiting is None else (state, f"job {name} waits: {waiting.reason}")

    def _read(self, name: str) -> Any | None:
        """What a file holds; None where there is none, or none that can be believed."""
        try:
            with open(f"{self._path}/{name}", "rb") as file:  # noqa: PTH123
                text = file.read()
            value = json.loads(text)
            if ESCAPES.search(text):
                value = bounds.plain(value)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError):
            value = None
        if CHECKS[name](value):
            return value
        self.damaged.append(name)
        return None


class Records:
    """The runs of an outputs folder; SLURM is asked once, and only if it matters."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs

    @cached_property
    def runs(self) -> list[RunRecord]:
        """Every run, by name."""
        return self.inside(self.outputs / "runs")

    def of(self, run: RunFolder) -> RunRecord:
        """A run of these."""
        return RunRecord(str(run.path), self)

    def inside(self, folder: Path) -> list[RunRecord]:
        """The runs in a folder, by name."""
        try:
            with os.scandir(folder) as entries:
                paths = sorted(
                    entry.path for entry in entries if entry.is_dir() and entry.name.isprintable()
                )
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [RunRecord(path, self) for path in paths]

    @cached_property
    def grids(self) -> list[Grid]:
        """Every grid, the newest last."""
        if not (self.outputs / "grids").is_dir():
            return []
        return sorted(all_grids(self.outputs), key=lambda grid: str(grid.record.get("created")))

    @cached_property
    def grid_records(self) -> dict[str, dict[str, Any]]:
        """`grid.json` by the grid's name."""
        return {grid.name: grid.record for grid in self.grids}

    @cached_property
    def grids_of(self) -> dict[str, list[Grid]]:
        """By the name of a run, the grids that it is of, the newest last."""
        found: dict[str, list[Grid]] = {}
        for grid in self.grids:
            for name in self.grid_records[grid.name]["runs"]:
                found.setdefault(name, []).append(grid)
        return found

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """By their ids, the SLURM jobs of all grids that have runs left, and their elements."""
        ids = [entry["job"] for grid in self._left for entry in grid.jobs]
        return states(ids) if ids else {}

    def job(self, name: str) -> Job | None:
        """A job, or an element of an array, if it is one of a grid that has runs left."""
        array = self.jobs.get(name.partition("_")[0])
        if array is None or not array.known:
            return None
        return self.jobs.get(name, Job(GONE))  # ended elements leave the queue before the others

    def jobs_of(self, grid: Grid) -> dict[str, Job]:
        """By their ids, the SLURM jobs of a grid, arrays as a whole; those that train come first.

        Empty where nobody knows how they stand.
        """
        if grid.path not in self._jobs_of:
            entries = sorted(grid.jobs, key=lambda entry: bool(entry.get("closing")))
            known = {entry["job"]: self.jobs.get(entry["job"]) for entry in entries}
            jobs = {name: job for name, job in known.items() if job is not None}
            certain = len(jobs) == len(known) and all(job.known for job in jobs.values())
            self._jobs_of[grid.path] = jobs if certain else {}
        return self._jobs_of[grid.path]

    @cached_property
    def _jobs_of(self) -> dict[Path, dict[str, Job]]:
        return {}

    @cached_property
    def _left(self) -> list[Grid]:
        """The grids with runs that have not come to an end."""
        unfinished = {run.name for run in self.runs if run.status["state"] in UNFINISHED}
        records = self.grid_records
        return [
            grid for grid in self.grids if not unfinished.isdisjoint(records[grid.name]["runs"])
        ]
