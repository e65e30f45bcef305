"""Checkpoints: two generations, each a safetensors file with its checksum in its name."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_exp.runs import files
from lora_exp.runs.folder import CHECKPOINT

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
    before = generations(folder)
    serial = int(before[0].name.split("-")[0]) + 1 if before else 1
    name = f"{serial:06d}-step-{step:08d}"
    temporary = folder / f"{name}{files.TEMPORARY}"
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        save_file(on_cpu, temporary, metadata={"state": json.dumps(state)})
        temporary.chmod(mode)  # safetensors makes it readable for its user alone
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)  # where the disk is full, it is in the way
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(temporary)) from error
    files.commit(temporary, folder / f"{name}-{_digest(temporary)}.safetensors")
    for old in before[GENERATIONS - 1 :]:
        old.unlink()


def load(
    folder: Path, together: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest generation that is whole, or of that of a given moment; None
    where there is none.

    Raises:
        OSError: if there may be one, and it cannot be read at this moment.
    """
    unread: OSError | None = None
    for path in generations(folder):
        try:
            if (state := _state(path)) is not None and together in (None, state["together"]):
                return load_file(path), state
        except OSError as error:
            log.warning("%s cannot be read (%s) and is left out.", path, error.strerror)
            unread = unread or OSError(error.errno, error.strerror, str(path))
    if unread is not None:
        raise unread
    return None


def moments(folder: Path) -> list[str]:
    """The moments (`Progress.together`) of the generations that are whole, newest first."""
    found = []
    for path in generations(folder):
        with suppress(OSError):
            if (state := _state(path)) is not None and state["together"]:
                found.append(state["together"])
    return found


def _state(path: Path) -> dict[str, Any] | None:
    if _digest(path) not in path.name:
        log.warning("%s is damaged and left out.", path)
        return None
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])
    except (SafetensorError, TypeError, KeyError, ValueError):  # it was never one of ours
        log.warning("%s is no checkpoint and left out.", path)
        return None


def generations(folder: Path) -> list[Path]:
    """The checkpoints there are, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if CHECKPOINT.fullmatch(p.name)), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
