"""Which files of `task.data_dir` hold a split, and what is said where there are none."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_exp.errors import UserError, nearest
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks import tables

SHOWN = 20
"""Names that an error message shows of a folder."""


def folder(task: TaskConfig) -> Path:
    """The folder with the task's data: `task.data_dir`, or the folder of the task's name in it.

    Raises:
        UserError: if there is none, with the folders beside it.
    """
    assert task.data_dir is not None
    top = Path(task.data_dir).expanduser()
    if not top.is_dir():
        what = "is not a folder" if top.exists() else "does not exist"
        parent = top.absolute().parent
        there = _listing(parent) if parent.is_dir() else []
        beside = [entry.name for entry in there if entry.is_dir()]
        advice = f" {nearest(top.name, beside, kind=f'folders in {parent}')}" if beside else ""
        raise UserError(f"task.data_dir={task.data_dir} {what}.{advice}")
    return top / task.name if (top / task.name).is_dir() else top


def fingerprint(
    task: TaskConfig,
    of_split: Callable[[str], Sequence[Path]],
    splits: Sequence[str],
    columns: Sequence[Any],
) -> str:
    """What the data of a task is, wherever its files lie and whatever they are called.

    Args:
        task: with `data_dir`, or from the hub.
        of_split: the files of a split.
        splits: that are used.
        columns: what is read of the files.

    Returns:
        `files:` and a hash of the contents of the files and of the columns, or `hub:ID:SUBSET`; the
        hub is not asked.

    Raises:
        UserError: for files that are missing or cannot be read.
    """
    if task.data_dir is None:
        return f"hub:{task.hub}:{task.subset}"
    contents = [
        [(tables.kind(path), tables.digest(path)) for path in of_split(split)] for split in splits
    ]
    known = json.dumps([contents, *columns])
    return "files:" + hashlib.sha256(known.encode()).hexdigest()


def find(
    task: TaskConfig,
    split: str,
    stems: Sequence[str],
    suffixes: Sequence[str],
    *,
    top: Path | None = None,
) -> list[Path]:
    """The file of a split, or its parts in order.

    Parts are shards of parquet in the folder (`train-00000-of-00002.parquet`) or, where no file has
    the split's name, all files of a folder that has it.

    Args:
        stems: what the file or folder may be called, without the end of its name.
        suffixes: how files may end; those of other ends are not looked at.
        top: where to look; None is `folder(task)`.

    Raises:
        UserError: if there is nothing, or more than one that could be meant.
    """
    top = folder(task) if top is None else top
    pattern = re.compile(
        rf"({'|'.join(map(re.escape, stems))})"
        rf"(?:{'|'.join(map(re.escape, suffixes))}|-\d+-of-(\d+)(?:-[0-9a-f]+)?\.parquet)"
    )
    candidates: dict[tuple[str, int], list[Path]] = {}
    for path in _listing(top):
        if path.name.endswith(tuple(suffixes)) and (match := pattern.fullmatch(path.name)):
            stem, shards = match.groups()
            candidate = (stem, int(shards)) if shards else (path.name, 1)
            candidates.setdefault(candidate, []).append(path)
    if not candidates:
        for below in (top / stem for stem in stems if (top / stem).is_dir()):
            parts = [path for path in _below(below) if path.name.endswith(tuple(suffixes))]
            # The challenge's test folder holds its unseen part and the bare inputs once more.
            whole = [path for path in parts if path.name.split(".")[0] in stems]
            kinds = sorted({tables.kind(path) for path in whole or parts})
            if len(kinds) > 1:
                raise UserError(
                    f"{below}: holds files of several formats ({', '.join(kinds)}). Keep one of "
                    "them, or name it (task.format)."
                )
            if parts := whole or parts:
                candidates[f"{below.name}/", len(parts)] = parts
    if not candidates:
        raise _nothing_found(task, split, top, stems, suffixes)
    if len(candidates) > 1:
        found = ", ".join(
            name if name.endswith("/") else ", ".join(path.name for path in paths)
            for (name, _), paths in candidates.items()
        )
        raise UserError(f"{top}: each of {found} could be the split {split!r}. Keep one of them.")
    ((_, shards), paths) = candidates.popitem()
    if len(paths) != shards:
        found = ", ".join(path.name for path in paths)
        raise UserError(f"{top}: the split {split!r} is {len(paths)} of {shards} shards ({found}).")
    return paths


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}).") from error


def _below(folder: Path) -> list[Path]:
    """All files in a folder and in the folders in it, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _nothing_found(
    task: TaskConfig, split: str, folder: Path, stems: Sequence[str], suffixes: Sequence[str]
) -> UserError:
    plain = [suffix for suffix in suffixes if not suffix.endswith(".gz")]
    looked = ", ".join(f"{stem}{ending}" for stem in stems for ending in plain)
    names = [path.name + "/" * path.is_dir() for path in _listing(folder)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    own = "" if folder.name == task.name else f" There is no folder {folder / task.name} either."
    return UserError(
        f"task {task.name}: no file for the split {split!r} in {folder}. Looked for {looked} "
        f"(text also as .gz, parquet also in shards like {stems[0]}-00000-of-00001.parquet, "
        f"and all files of a folder {stems[0]}/); "
        f"there is {', '.join(names[:SHOWN]) or 'nothing'}{more}.{own}"
    )
