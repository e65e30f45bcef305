"""Checkpoints: two generations, each one file with a checksum over all of it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lora_exp.runs import files

GENERATIONS = 2
DIGEST = 64
"""Hexadecimal digits of the checksum, which stand before the tensors and a line end."""

log = logging.getLogger("lora_exp")


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a generation, then remove the one before the last.

    Args:
        folder: the run's `checkpoint/`.
        step: number of updates made.
        tensors: by name.
        state: everything else, as JSON can hold it.
    """
    folder.mkdir(exist_ok=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    body = safetensors.torch.save(on_cpu, metadata={"state": json.dumps(state)})
    digest = hashlib.sha256(body).hexdigest()
    files.write(folder / f"step-{step:08d}.checkpoint", f"{digest}\n".encode() + body)
    for old in generations(folder)[GENERATIONS:]:
        old.unlink()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest generation that is whole; None where there is none."""
    for path in generations(folder):
        content = path.read_bytes()
        body = memoryview(content)[DIGEST + 1 :]
        if content[:DIGEST].decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
            log.warning("%s is damaged and left out.", path)
            continue
        tensors = safetensors.torch.load(bytes(body))
        header = json.loads(bytes(body[8 : 8 + int.from_bytes(body[:8], "little")]))
        return tensors, json.loads(header["__metadata__"]["state"])
    return None


def generations(folder: Path) -> list[Path]:
    """The checkpoints there are, newest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+\.checkpoint", path.name)]
    return sorted(named, reverse=True)
