"""Checkpoints: two generations, each a safetensors file with its checksum in its name."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_exp.runs import files

GENERATIONS = 2

log = logging.getLogger("lora_exp")


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a generation, then remove those before the last.

    Args:
        folder: the run's `checkpoint/`.
        step: number of updates made.
        tensors: by name.
        state: everything else, as JSON can hold it.
    """
    folder.mkdir(exist_ok=True)
    temporary = folder / f"step-{step:08d}{files.TEMPORARY}"
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, temporary, metadata={"state": json.dumps(state)})
    files.commit(temporary, folder / f"step-{step:08d}-{_digest(temporary)}.safetensors")
    for old in generations(folder)[GENERATIONS:]:
        old.unlink()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest generation that is whole; None where there is none."""
    for path in generations(folder):
        if _digest(path) not in path.name:
            log.warning("%s is damaged and left out.", path)
            continue
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        return load_file(path), state
    return None


def generations(folder: Path) -> list[Path]:
    """The checkpoints there are, newest first."""
    if not folder.is_dir():
        return []
    pattern = re.compile(r"step-\d+-[0-9a-f]+\.safetensors")
    return sorted((p for p in folder.iterdir() if pattern.fullmatch(p.name)), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
