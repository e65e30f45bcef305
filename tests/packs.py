"""Grids without a grid: run folders made by hand, and a worker in this process or a forked one."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lora_exp.runs.config import (
    Config,
    LoraConfig,
    ModelConfig,
    PackConfig,
    TaskConfig,
    TrainConfig,
)
from lora_exp.runs.folder import RunFolder
from lora_exp.train import job
from lora_exp.train.work import work


def recipe(model: Path | str, outputs: Path, **changes: Any) -> Config:
    """A short run on `agreement`; `changes` of `train`, or of `lora` with `lora_` before the name,
    or of the config itself."""
    train: dict[str, Any] = {"lr": 1e-3, "max_steps": 12, "batch_size": 8, "max_length": 30}
    train |= {"eval_every": 1000, "log_every": 1, "checkpoint_seconds": 1e9}
    of_lora: dict[str, Any] = {"r": 4}
    own: dict[str, Any] = {}
    for key, value in changes.items():
        if key.startswith("lora_"):
            of_lora[key.removeprefix("lora_")] = value
        elif key in train or key in TrainConfig.__dataclass_fields__:
            train[key] = value
        else:
            own[key] = value
    own.setdefault("task", TaskConfig(name="agreement", kind="agreement"))
    return Config(
        model=ModelConfig(str(model)),
        lora=LoraConfig(**of_lora),
        train=TrainConfig(**train),
        device="cpu",
        outputs=str(outputs),
        **own,
    )


def losses(path: Path) -> list[float]:
    """Of training, in a run's metrics."""
    return [line["loss"] for line in RunFolder(path).metrics() if line["split"] == "train"]


def outcome(path: Path) -> dict[str, Any]:
    """All of a run that is to be the same to the last bit."""
    lines = [line | {"seconds": 0} for line in RunFolder(path).metrics()]
    adapter = {file.name: file.read_bytes() for file in (path / "adapter").iterdir()}
    result = RunFolder(path).result
    assert result is not None
    return {"lines": lines, "adapter": adapter, "metrics": result["metrics"]}


def nan_at(seed: int, step: int) -> Callable[[], None]:
    """What lets the loss of the run with this seed be no number at this step."""

    def patch() -> None:
        from lora_exp.train.run import Run

        original = Run.loss

        def loss(self: Run, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            value = original(self, logits, labels)
            hit = self.config.seed == seed and self.progress.step == step - 1
            return value * math.nan if hit else value

        Run.loss = loss  # type: ignore[method-assign]

    return patch


class Listed:
    """A source of the runs of a list, in order."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.states = list(paths), {}

    def take(self, like: Path | None, number: int) -> list[Path]:
        taken, self.paths = self.paths[:number], self.paths[number:]
        return taken

    def ended(self, run: Path, state: str) -> None:
        self.states[run] = state


def queue(configs: list[Config], size: int) -> list[Path]:
    """Make the folders of runs that are to be trained `size` at a time."""
    paths = []
    for config in configs:
        found = job.identify(replace(config, pack=PackConfig(size)))
        if found.folder.result is None:
            found.folder.create(found.config, {"group": found.group, "content": found.content})
        paths.append(found.folder.path)
    return paths


def train(configs: list[Config], size: int) -> dict[Path, str]:
    """Train them in this process; how each ended."""
    paths = queue(configs, size)
    source = Listed(paths)
    work(source, "cpu")
    return {path: source.states[path] for path in paths}


def train_in_child(
    configs: list[Config], size: int, before: Callable[[], None] | None = None
) -> int:
    """The same in a forked process; its exit status, minus the signal's number if one killed it."""
    importlib.import_module("lora_exp.train.loop")  # so that no child has to
    child = os.fork()
    if child == 0:
        status = 70
        try:
            if before is not None:
                before()
            train(configs, size)
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(code)
