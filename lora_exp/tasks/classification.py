"""Tables of text and label, from files or from the Hugging Face hub; GLUE is eight of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from lora_exp.errors import UserError
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks import files, tables
from lora_exp.tasks.data import Examples, TaskData

STEMS = {
    "validation": ("validation", "dev"),
    "validation_matched": ("validation_matched", "dev_matched", "dev", "validation"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
}
"""What the file of a split may be called; other splits have files of their own name."""


def load(task: TaskConfig) -> TaskData:
    """The examples of a task, from `task.data_dir` if that is given and else from the hub.

    A class may stand in the data by its name in `task.labels` or by its number there (by its name
    only, where names are numbers themselves). Without `task.labels` the classes are those that the
    hub declares, or the distinct labels of the training data, sorted.

    Raises:
        UserError: for data that is missing or malformed, naming file, line and what was expected.
    """
    if task.data_dir is not None:
        read, declared = partial(_read_files, task), None
    else:
        from lora_exp.tasks.hub import open_hub

        read, declared = open_hub(task)
    if task.regression:
        names, label_of = None, _number
    else:
        names = _classes(task, declared, read)
        label_of = partial(_class, _spellings(names))

    def examples(split: str) -> Examples:
        texts, labels = [], []
        for place, (*values, label) in read(split, [*task.text, task.label]):
            check_texts(place, task.text, values)
            texts.append(tuple(values))
            labels.append(label_of(place, label))
        if not labels:
            raise UserError(
                f"task {task.name}: the split {split!r} in {_source(task)} has no rows."
            )
        return Examples(texts, labels)

    return TaskData(
        train=examples("train"),
        validation={split: examples(split) for split in task.validation},
        labels=None if names is None else tuple(names),
    )


def check_texts(place: str, columns: Sequence[str], values: Sequence[object]) -> None:
    """Refuse a row without text.

    Raises:
        UserError: that begins with `place` and names the column.
    """
    for column, text in zip(columns, values, strict=True):
        tables.check_text(place, column, text)
    if not any(values):  # one of a pair may be empty, as a question in QQP is
        tables.check_text(place, columns[0], None)


def fingerprint(task: TaskConfig) -> str:
    """What the data is; see `lora_exp.tasks.files.fingerprint`."""
    splits = ("train", *task.validation)
    return files.fingerprint(task, partial(_files, task), splits, [task.text, task.label])


# Labels and text


def _classes(task: TaskConfig, declared: Sequence[str] | None, read: tables.Read) -> list[str]:
    """The names of the classes, at least two, in the order of their numbers."""
    if task.labels is not None:
        names, origin = task.labels, "task.labels"
    elif declared is not None:
        names, origin = declared, f"the column {task.label!r} of {_source(task)}"
    else:
        values = {_name(place, label) for place, (label,) in read("train", [task.label])}
        names = sorted(values, key=int if all(map(_is_integer, values)) else None)
        origin = f"the column {task.label!r} of the training data in {_source(task)}"
    if len(set(names)) < max(2, len(names)):
        raise UserError(
            f"{origin} has the classes [{', '.join(names)}]; expected at least two, all different."
        )
    return list(names)


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text) is not None


def _spellings(names: Sequence[str]) -> dict[str, int]:
    """The number of the class for each text that may stand for it."""
    known = {name: number for number, name in enumerate(names)}
    if not any(map(_is_integer, names)):
        known.update((str(number), number) for number in range(len(names)))
    return known


def _name(place: str, value: object) -> str:
    if isinstance(value, str | int) and value != "":
        return str(value)
    raise UserError(
        f"{place}: the label is {tables.shown(value)}; expected the name or the number of a class "
        "(for numbers to predict: task.regression=true)."
    )


def _class(spellings: Mapping[str, int], place: str, value: object) -> int:
    name = _name(place, value)
    number = spellings.get(name)
    if number is None:
        raise UserError(f"{place}: unknown label {name!r}. Known are: {', '.join(spellings)}.")
    return number


def _number(place: str, value: object) -> float:
    try:
        if isinstance(value, str | int | float) and math.isfinite(number := float(value)):
            return number
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{place}: the label is {tables.shown(value)}; expected a finite number.")


def _source(task: TaskConfig) -> str:
    if task.data_dir is not None:
        return str(files.folder(task))
    return f"{task.hub} ({task.subset})" if task.subset else f"{task.hub}"


# Files


def _read_files(task: TaskConfig, split: str, columns: Sequence[str]) -> Iterator[tables.Row]:
    for path in _files(task, split):
        yield from tables.rows(path, columns)


def _files(task: TaskConfig, split: str) -> list[Path]:
    return files.find(task, split, STEMS.get(split, (split,)), tables.SUFFIXES)
