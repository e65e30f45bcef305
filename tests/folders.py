"""Folders of small tables, as users have them, and what loading them says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_exp.errors import UserError
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks.classification import load

ROWS = [("a b", "no"), ("c", "yes"), ("d", "no")]


def config(folder: Path, **changes: Any) -> TaskConfig:
    values: dict[str, Any] = {"name": "mine", "data_dir": str(folder), "text": ["text"]}
    return TaskConfig(**(values | changes))


def write(
    path: Path, rows: list[tuple] = ROWS, header: tuple[str, ...] = ("text", "label")
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        columns = zip(*rows, strict=True)
        parquet.write_table(pyarrow.table(dict(zip(header, columns, strict=True))), path)
    elif path.suffix == ".jsonl":
        objects = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        path.write_text("\n".join(objects))
    else:
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]))
    return path


def refused(task: TaskConfig) -> str:
    with pytest.raises(UserError) as caught:
        load(task)
    return str(caught.value)
