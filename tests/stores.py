"""Outputs folders made by hand: runs in any state, grids, and a SLURM that says what it is told."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from lora_exp import cli
from lora_exp.runs import files
from lora_exp.runs.config import Config, ModelConfig, TaskConfig, TrainConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.signature import slug
from lora_exp.runs.values import from_mapping

RESULT = {
    "metrics": {"loss": 0.4, "accuracy": 0.8},
    "best_epoch": 3.0,
    "trainable_parameters": 1000,
    "train_seconds": 2.0,
    "peak_memory_bytes": 2**20,
}


def config(**values: Any) -> Config:
    """A config with other values, dotted keys with `__` for the dots."""
    task = TaskConfig("rte", data_dir="data", text=["sentence"])
    plain = Config(task=task, model=ModelConfig("x/tiny"), train=TrainConfig(lr=1e-3))
    tree = asdict(plain)
    for key, value in values.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    return from_mapping(tree)


@dataclass
class Store:
    """An outputs folder."""

    outputs: Path
    made: int = 0

    def run(
        self,
        state: str = "queued",
        status: dict[str, Any] | None = None,
        *,
        metrics: dict[str, float] | None = None,
        group: str | None = None,
        **values: Any,
    ):
        """A run; `values` are of its config."""
        self.made += 1
        signature, described = (
            f"{self.made:012x}",
            config(**{"outputs": str(self.outputs)} | values),
        )
        folder = RunFolder(self.outputs / "runs" / f"{slug(described)}-{signature}")
        group = group or f"group-of-{described.task.name}-{described.lora.r}"
        folder.create(described, {"signature": signature, "group": group, "snapshot": "kept"})
        if state == "done":
            result = RESULT | ({} if metrics is None else {"metrics": metrics})
            files.write_json(folder.path / "result.json", result)
        written = {"state": state, "heartbeat": time.time(), "host": "h", "pid": 1, "attempt": 1}
        files.write_json(folder.path / "status.json", written | (status or {}))
        folder.log.write_text(f"log of {folder.name}\n")
        return folder

    def grid(self, name: str, runs: list[RunFolder], *jobs: str, **more: Any) -> Path:
        """A grid, of SLURM if it has jobs."""
        path = self.outputs / "grids" / name
        path.mkdir(parents=True)
        launcher = {"name": "slurm" if jobs else "local"}
        record = {"name": name, "created": f"2026-01-01T00:00:{len(name):02}Z"}
        names = [run.name for run in runs]
        files.write_json(path / "grid.json", record | {"launcher": launcher, "runs": names} | more)
        lines = [json.dumps({"job": job, "closing": False}) + "\n" for job in jobs]
        (path / "jobs.jsonl").write_text("".join(lines))
        return path

    def say(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
        """`python -m lora_exp ARGUMENTS`: its exit status and all that it wrote."""
        former = sys.argv
        sys.argv = ["lora_exp", *arguments, "--outputs", str(self.outputs)]
        try:
            cli.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        finally:
            sys.argv = former
        written = capsys.readouterr()
        return status, written.out + written.err

    def states(self) -> dict[str, str]:
        """What the files say, by signature."""
        runs = (RunFolder(path) for path in (self.outputs / "runs").iterdir())
        return {run.signature.lstrip("0"): run.status["state"] for run in runs}


def commands(folder: Path, **scripts: str) -> str:
    """A PATH with these commands first, each the body of a shell script.

    Each call of one appends its arguments to a file NAME.calls.
    """
    folder.mkdir(exist_ok=True)
    for name, body in scripts.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n{body}\n')
        script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
