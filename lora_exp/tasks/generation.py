"""Text generation: sources with their references, from files or from the Hugging Face hub.

The tables of E2E, WebNLG and DART (`task.corpus`) are read as their makers wrote them; any other
table has a source, made of its columns, and one or more references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lora_exp.errors import UserError, nearest
from lora_exp.runs.checks import placeholders
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks import files, meanings, tables
from lora_exp.tasks.data import GenerationData, Pair, Source
from lora_exp.tasks.meanings import Meaning

STEMS = {"validation": ("validation", "valid", "dev")}
"""What the files of a split of a plain table may be called; others have files of their own name."""


def load(task: TaskConfig) -> GenerationData:
    """The pairs and sources of a task, from `task.data_dir` if that is given, else from the hub.

    Rows of one split with equal sources are one source with all their references; a source of a
    corpus that nobody described well is left out, as in microsoft/LoRA.

    Raises:
        UserError: for data that is missing or malformed, naming file, line and what was expected.
    """
    splits = {split: list(_meanings(task, split)) for split in _splits(task)}
    for split, found in splits.items():
        if not found:
            raise UserError(f"task {task.name}: the split {split!r} in {_where(task)} has no rows.")
    sources = {split: _merged(splits[split]) for split in splits if split != "train"}
    return GenerationData(
        train=[Pair(each.source, text) for each in splits["train"] for text in each.references],
        validation={split: sources[split] for split in task.validation},
        test=sources[task.test or task.validation[0]],
    )


def fingerprint(task: TaskConfig) -> str:
    """What the data is; see `lora_exp.tasks.files.fingerprint`."""
    columns = [task.corpus, task.source, task.template, task.references]
    return files.fingerprint(task, partial(_files, task), _splits(task), columns)


def _splits(task: TaskConfig) -> list[str]:
    return list(dict.fromkeys(["train", *task.validation, *([task.test] if task.test else [])]))


def _meanings(task: TaskConfig, split: str) -> Iterator[Meaning]:
    """Those that have a reference."""
    for path in _files(task, split):
        found = _rows(task, path) if task.corpus is None else meanings.read(task.corpus, path)
        yield from (meaning for meaning in found if meaning.references)


def _merged(found: list[Meaning]) -> list[Source]:
    """Each distinct source once, in the order of their first places, with all its references."""
    first: dict[str, Meaning] = {}
    references: dict[str, list[str]] = {}
    for meaning in found:
        first.setdefault(meaning.source, meaning)
        references.setdefault(meaning.source, []).extend(meaning.references)
    return [Source(text, tuple(references[text]), meaning.group) for text, meaning in first.items()]


# Plain tables


def _rows(task: TaskConfig, path: Path) -> Iterator[Meaning]:
    for place, source, values in read_sources(task, path, task.references):
        yield Meaning(place, source, _references(place, task.references, values))


def read_sources(
    task: TaskConfig, path: Path, more: Sequence[str] = ()
) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """What the model reads of each row of a table, with its place and the values of more columns.

    Raises:
        UserError: for what is missing or malformed, with the place.
    """
    names = placeholders(task.template) if task.template is not None else [task.source]
    for place, values in tables.rows(path, [*names, *more]):
        cells = dict(zip(names, values[: len(names)], strict=True))
        if task.template is None:
            source = cells[task.source]
            tables.check_text(place, task.source, source)
        else:
            # Numbers and what else a row may hold are written as Python writes them.
            source = task.template.format_map(
                {name: _cell(place, name, cell) for name, cell in cells.items()}
            )
        if not source.strip():
            raise UserError(f"{place}: the source is empty.")
        yield place, source, values[len(names) :]


def _cell(place: str, column: str, value: object) -> str:
    text = str(value) if isinstance(value, int | float) else value
    tables.check_text(place, column, text)
    return str(text)


def _references(place: str, columns: list[str], values: tuple[Any, ...]) -> tuple[str, ...]:
    """The texts in the columns of references, each a text, a list of texts or empty."""
    found: list[str] = []
    for column, value in zip(columns, values, strict=True):
        if value is None or value == "":
            continue
        for text in value if isinstance(value, list) else [value]:
            tables.check_text(place, column, text)
            found.append(text)
    if not any(text.strip() for text in found):
        raise UserError(f"{place}: no reference; expected a text in {' or '.join(columns)}.")
    return tuple(text for text in found if text.strip())


# Files


def _where(task: TaskConfig) -> str:
    if task.data_dir is not None:
        return str(files.folder(task))
    return f"{task.hub} ({task.subset})" if task.subset else f"{task.hub}"


def _files(task: TaskConfig, split: str) -> list[Path]:
    known = STEMS if task.corpus is None else meanings.STEMS[task.corpus]
    stems = known.get(split, (split,))
    if task.data_dir is None:
        from lora_exp.tasks.hub import parquet_folder

        return files.find(task, split, stems, (".parquet",), top=parquet_folder(task))
    suffixes = tables.SUFFIXES if task.corpus is None else meanings.SUFFIXES[task.corpus]
    formats = {suffix: suffix.split(".")[1] for suffix in suffixes}
    if task.format is not None and task.format not in formats.values():
        raise UserError(
            f"task.format={task.format}: no format of this task. "
            f"{nearest(task.format, formats.values(), kind='formats')}"
        )
    wanted = [suffix for suffix, name in formats.items() if task.format in (None, name)]
    return files.find(task, split, stems, wanted)
