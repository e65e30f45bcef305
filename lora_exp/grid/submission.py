"""What was left to SLURM at one time: runs, and what the jobs that share them have to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from lora_exp.grid.queue import Ticket
from lora_exp.runs import files
from lora_exp.runs.config import Config
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import ENDED, Grid
from lora_exp.runs.lease import RunBusy

RUNS_PER_PACK = 8
"""Assumed of packs where `pack.size` leaves it to the memory of the node."""


@dataclass(frozen=True)
class Shape:
    """Runs that want the same number of processes."""

    nodes: int
    devices: int
    """Processes on each node that train one run together."""
    tickets: list[Ticket]
    """The runs, those next to each other that can train together."""

    @property
    def together(self) -> bool:
        """Several processes train one run."""
        return self.nodes * self.devices > 1

    @property
    def packs(self) -> int:
        """How many there are, each run that cannot be packed counted as one."""
        sizes: dict[str, list[int]] = {}
        for ticket in self.tickets:
            key = ticket.key or ticket.path.name
            sizes.setdefault(key, []).append(ticket.most or RUNS_PER_PACK)
        return sum(-(-len(of_key) // of_key[0]) for of_key in sizes.values())


def shapes(configs: Mapping[Path, Config]) -> list[Shape]:
    """The runs in these folders, by the processes that they want."""
    from lora_exp.grid.packs import pack_key

    found: dict[tuple[int, int], dict[str, list[Ticket]]] = {}
    for path, config in configs.items():
        ticket = Ticket(path, pack_key(config), config.pack.size)
        of_shape = found.setdefault((config.train.nodes, config.train.devices), {})
        of_shape.setdefault(ticket.key or path.name, []).append(ticket)
    return [
        Shape(nodes, devices, [ticket for of_key in packs.values() for ticket in of_key])
        for (nodes, devices), packs in found.items()
    ]


@dataclass(frozen=True)
class Submission:
    """`outputs/grids/NAME/jobs/NUMBER/`; what the jobs print lies there too.

    It says which runs there are. How far they have come, a job sees in their folders each time that
    it starts.
    """

    path: Path

    @classmethod
    def create(cls, grid: Grid, shape: Shape, **more: Any) -> Submission:
        """Write a submission down.

        Args:
            grid: of the runs.
            shape: the runs, in folders of the grid's outputs.
            more: `settings`; `code`, the snapshot; `stalled`, how often it was made in vain.
        """
        jobs = grid.path / "jobs"
        jobs.mkdir(exist_ok=True)
        submission = cls(_numbered(jobs))
        record = more | {
            "together": shape.together,
            "runs": [[ticket.path.name, ticket.key, ticket.most] for ticket in shape.tickets],
            "progress": progress([RunFolder(ticket.path) for ticket in shape.tickets]),
        }
        files.write_json(submission.path / "submission.json", record)
        return submission

    @property
    def name(self) -> str:
        """Its number within the grid."""
        return self.path.name

    @property
    def grid(self) -> Grid:
        """That its runs are of."""
        return Grid(self.path.parents[1])

    @property
    def record(self) -> dict[str, Any]:
        """`submission.json`: `runs`, what `create` was given, and the `progress` at that time."""
        return files.read_json(self.path / "submission.json") or {}

    @property
    def runs(self) -> list[RunFolder]:
        """All of them; those that were cleaned away are left out."""
        names = [name for name, *_ in self.record["runs"]]
        folders = (self.grid.outputs / "runs" / name for name in names)
        return [RunFolder(path) for path in folders if path.is_dir()]

    def left(self) -> Iterator[Ticket]:
        """The runs that have not ended, each with the pack it was in before."""
        runs = self.grid.outputs / "runs"
        for name, key, most in self.record["runs"]:
            status = RunFolder(runs / name).status
            if status["state"] not in ENDED and (runs / name).is_dir():
                yield Ticket(runs / name, key, most, status.get("pack"))

    @property
    def jobs(self) -> list[str]:
        """Those that train its runs."""
        own = [job for job in self.grid.jobs if job.get("submission") == self.name]
        return [job["job"] for job in own if not job["closing"]]


def progress(runs: Sequence[RunFolder]) -> list[int]:
    """How many of the runs have ended, and what is kept of the others: the updates in checkpoints,
    and the bytes of texts.

    It grows, as lists are compared, if one of them comes further. What a killed process takes along
    is no progress: a run that never comes as far as a checkpoint would be trained for ever.
    """
    left = [run for run in runs if run.status["state"] not in ENDED]
    texts = [file for run in left for file in run.texts_file.parent.glob("*")]
    kept = sum(run.saved_step for run in left) + sum(file.stat().st_size for file in texts)
    return [len(runs) - len(left), kept]


def end(run: RunFolder, state: Literal["failed", "cancelled"], **details: str) -> None:
    """Let a run end without a result, unless it has ended, or somebody trains it."""
    with suppress(RunBusy), run.lock():
        if run.status["state"] not in ENDED:
            run.set_status(state, **run.progress, **details)


def _numbered(folder: Path) -> Path:
    for number in count(1):
        try:
            (folder / str(number)).mkdir()
            return folder / str(number)
        except FileExistsError:
            continue
    raise AssertionError
