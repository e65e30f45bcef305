"""Data sets from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.errors import UserError, nearest
from lora_exp.hub import unreachable
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks.tables import Read, Row, find_column

if TYPE_CHECKING:
    from datasets import DatasetDict

CONVERTED = "refs/convert/parquet"
"""The branch with the hub's own conversion; loading scripts are not run any more."""


def open_hub(task: TaskConfig) -> tuple[Read, list[str] | None]:
    """A task's data set on the hub, or in the cache that an earlier download left.

    Returns:
        what reads the rows of a split, and the names of the classes if the data set declares them.
        A declared class comes out of the rows by its name: the one in `task.labels`, if that
        renames the classes, else the data set's.

    Raises:
        UserError: if there is no such data set or no network, with how to bring the files instead.
    """
    import datasets

    where = f"{task.hub} ({task.subset})" if task.subset else str(task.hub)
    splits = _load(task, where)
    feature = next(iter(splits.values())).features.get(task.label)
    declared = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    renamed = task.labels is not None and set(task.labels) != set(declared or ())
    names = task.labels if renamed else declared

    def read(split: str, columns: Sequence[str]) -> Iterator[Row]:
        if split not in splits:
            raise UserError(
                f"{where}: no split {split!r}. {nearest(split, map(str, splits), kind='splits')}"
            )
        data = splits[split]
        for column in columns:
            find_column(where, data.column_names, column)
        for number, values in enumerate(zip(*(data[c][:] for c in columns), strict=True), 1):
            if declared is not None:
                values = tuple(
                    _named(value, names) if column == task.label else value
                    for column, value in zip(columns, values, strict=True)
                )
            yield f"{where}, split {split}, row {number}", values

    return read, declared


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """The name of a declared class; what is no class (-1 of hidden labels, null) stays."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _load(task: TaskConfig, where: str) -> DatasetDict:
    import datasets
    from datasets import config, exceptions
    from huggingface_hub import constants

    repo = _repo(task)
    if unreachable():
        config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(repo, task.subset)
    except exceptions.DatasetNotFoundError as error:
        reason = f"the hub ({constants.ENDPOINT}) has no such data set, or it is private."
        raise _advice(task, where, reason) from error
    except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
        reason = f"it cannot be loaded: {error}"
        if unreachable():
            reason = (
                f"the hub ({constants.ENDPOINT}) cannot be reached, and the cache "
                f"({config.HF_DATASETS_CACHE}) does not have it."
            )
        raise _advice(task, where, reason) from error


def parquet_folder(task: TaskConfig) -> Path:
    """A task's data set in the form of parquet that the hub makes of it (`CONVERTED`).

    Returns:
        the folder of its subset, with a folder for each split, in the cache.

    Raises:
        UserError: if there is no such data set or no network, with how to bring the files instead.
    """
    from huggingface_hub import constants, errors, snapshot_download

    repo, subset = _repo(task), task.subset or "default"
    where, offline = f"{repo} ({subset})", unreachable()
    try:
        snapshot = snapshot_download(
            repo,
            repo_type="dataset",
            revision=CONVERTED,
            allow_patterns=f"{subset}/*",
            local_files_only=offline,
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = (
            f"the hub ({constants.ENDPOINT}) has no such data set, it is private, or it has no "
            f"parquet form (branch {CONVERTED})."
        )
        raise _advice(task, where, reason) from error
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        reason = f"it cannot be loaded: {error}"
        if offline or unreachable():
            reason = (
                f"the hub ({constants.ENDPOINT}) cannot be reached, and the cache "
                f"({constants.HF_HUB_CACHE}) does not have it."
            )
        raise _advice(task, where, reason) from error
    folder = Path(snapshot) / subset
    if not folder.is_dir():
        raise _advice(task, where, f"its parquet form has no subset {subset!r} (task.subset).")
    return folder


def _repo(task: TaskConfig) -> str:
    """The data set's id, if it can be one."""
    if task.hub is None:
        raise UserError(f"task {task.name} has no data: give task.data_dir=DIR or task.hub=ID.")
    # The libraries would take other words for folders here or for file formats.
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", task.hub) or Path(task.hub).exists():
        raise UserError(
            f"task.hub={task.hub}: not a data set's id on the hub, which is ORGANISATION/NAME; "
            "a folder on this machine is task.data_dir=DIR."
        )
    return task.hub


def _advice(task: TaskConfig, where: str, reason: str) -> UserError:
    splits = ["train", *task.validation, *([task.test] if task.test else [])]
    if task.corpus is None:
        shape = f"{' and '.join(f'{split}.tsv' for split in splits)} (or .csv, .jsonl, .parquet)"
        columns = [*task.text, task.label]
        if task.kind == "generation":
            columns = [task.source if task.template is None else "of the template"]
            columns += task.references
        shape += f" with the columns {', '.join(columns)}"
    else:
        shape = f"the original files of {task.corpus} ({', '.join(splits)})"
    return UserError(
        f"task.hub={where}: {reason}\n"
        f"Instead, bring the files: task.data_dir=DIR, where DIR/{task.name} holds {shape}.\n"
        "Or set HF_ENDPOINT to a mirror of the hub, or HF_HOME to a cache that was filled on a "
        "machine with network."
    )
