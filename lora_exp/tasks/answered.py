"""Tables with what a model said beside each row: the bytes of TSV, CSV, JSON lines and parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_exp.errors import UserError
from lora_exp.tasks import tables

Records = Sequence[Mapping[str, Any]]
"""Rows, each a mapping from columns to values."""


def encoded(path: Path, records: Records) -> bytes:
    """The content of a table in the format that a name promises.

    A row that lacks a column of others is empty there. TSV and CSV hold what is no text as JSON.

    Args:
        path: whose name ends in one of `tables.SUFFIXES`.
        records: the rows, at least one.

    Raises:
        UserError: for another name, and for what the format cannot hold, with the row.
    """
    formats: dict[str, Callable[[Path, Records], bytes]]
    formats = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
    if not path.name.endswith(tables.SUFFIXES):
        raise UserError(f"{path}: its name must end in {', '.join(tables.SUFFIXES)}.")
    try:
        content = formats[tables.kind(path)](path, records)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}: a row has half of a surrogate pair, not Unicode ({error.reason})."
        ) from error
    # Without the time, so that the same table is the same file.
    return gzip.compress(content, mtime=0) if path.suffix == ".gz" else content


def _tsv(path: Path, records: Records) -> bytes:
    rows = _cells(records)
    for number, row in enumerate(rows):
        if bad := next((cell for cell in row if {"\t", "\n", "\r"} & {*cell}), None):
            raise UserError(
                f"{path}: {f'row {number}' if number else 'the header'} has a tab or a line end "
                f"({bad[:40]!r}), which TSV cannot hold. Name a file that ends in .csv or .jsonl."
            )
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _csv(path: Path, records: Records) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_cells(records))
    return text.getvalue().encode()


def _jsonl(path: Path, records: Records) -> bytes:
    lines = (json.dumps(record, ensure_ascii=False, default=str) for record in records)
    return "".join(f"{line}\n" for line in lines).encode()


def _parquet(path: Path, records: Records) -> bytes:
    import pyarrow
    from pyarrow import parquet

    names, arrays = _names(records), []
    for name in names:
        try:
            arrays.append(pyarrow.array([record.get(name) for record in records]))
        except (pyarrow.ArrowException, OverflowError) as error:
            raise UserError(
                f"{path}: the column {name!r} holds values of several types, which parquet cannot "
                f"({error}). Name a file that ends in .jsonl."
            ) from error
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays, names=names), file)
    return file.getvalue()


def _names(records: Records) -> list[str]:
    """Every column, in the order of their first places."""
    return list(dict.fromkeys(name for record in records for name in record))


def _cells(records: Records) -> list[list[str]]:
    names = _names(records)
    return [names, *([_cell(record.get(name)) for name in names] for record in records)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
