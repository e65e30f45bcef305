"""Rows of tables in files: TSV, CSV and JSON lines (each also gzipped), and parquet.

Every row comes with its place, so that whoever finds a mistake in it can say where it stands.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_exp.errors import UserError, nearest

SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")

SURROGATE = re.compile("[\ud800-\udfff]")
"""What JSON can write as an escape, but no text can hold and no tokenizer can read."""

Row = tuple[str, tuple[Any, ...]]
"""A row's place (`FILE:LINE`; `FILE, row N` for parquet) and its values."""

Read = Callable[[str, Sequence[str]], Iterator[Row]]
"""From a split and the columns wanted to the rows."""


def rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a table, in their order; the file is read as they are consumed.

    TSV is as in GLUE: a header, then one row a line, tabs between fields, no quoting. CSV has a
    header and the quoting of RFC 4180. Blank lines count as no row.

    Args:
        path: a file whose name ends in one of `SUFFIXES`.
        columns: the columns wanted.

    Yields:
        each row's place and the values of `columns` in their order: strings from TSV and CSV,
        whatever the file holds from JSON lines and parquet.

    Raises:
        UserError: for a column that is not there and for whatever cannot be read, with the place.
    """
    match kind(path):
        case "tsv":
            return _with_header(path, _tsv(path), columns)
        case "csv":
            return _with_header(path, _csv(path), columns)
        case "jsonl":
            return _jsonl(path, columns)
        case "parquet":
            return _parquet(path, columns)
        case _:
            raise UserError(f"{path}: not a table; its name must end in {', '.join(SUFFIXES)}.")


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table with all their columns, each with its place; as `rows` otherwise."""
    if kind(path) == "jsonl":
        yield from _objects(path)
    else:
        names = columns(path)
        for place, values in rows(path, names):
            yield place, dict(zip(names, values, strict=True))


def columns(path: Path) -> list[str]:
    """The columns of a table; of JSON lines, those of the first one. None if it is no table.

    Raises:
        UserError: if it cannot be read.
    """
    match kind(path):
        case "tsv":
            return next(_tsv(path), (0, []))[1]
        case "csv":
            return next(_csv(path), (0, []))[1]
        case "jsonl":
            return list(next(_objects(path), ("", {}))[1])
        case "parquet":
            return _parquet_columns(path)
        case _:
            return []


def kind(path: Path) -> str:
    """The format that a file's name promises: `tsv`, `csv`, `jsonl` or `parquet`."""
    return Path(path.name.removesuffix(".gz")).suffix[1:]


def digest(path: Path) -> str:
    """SHA-256 of the content as it was before gzip; computed once for each state of the file."""
    try:
        state = path.stat()
    except OSError as error:
        raise unreadable(str(path), path, error) from error
    return _digest(path, state.st_size, state.st_mtime_ns)


@cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    try:
        with open_binary(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(str(path), path, error) from error


def open_binary(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """The file as it was before gzip, for reading."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def unreadable(place: str, path: Path, error: Exception) -> UserError:
    """What to raise for a file that the system or gzip cannot read."""
    what = "gzip file" if path.suffix == ".gz" else "file"
    return UserError(f"{place}: not a readable {what} ({error}).")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and the lines with their ends.

    Raises:
        UserError: for what is not UTF-8 or cannot be read, with the place.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for number, line in enumerate(file, 1):
                if b"\0" in line:
                    raise UserError(
                        f"{path}:{number}: has a NUL byte; expected UTF-8 text. "
                        "Is the file UTF-16, or damaged?"
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path}:{number}: byte 0x{byte:02x} at position {error.start} is not UTF-8. "
            "Convert the file to UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        place = f"{path}, after line {number}" if number else str(path)
        raise unreadable(place, path, error) from error


def _tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    # Not the csv module: even unquoted it ends a line at a carriage return inside a field.
    for number, line in lines(path):
        content = line.removesuffix("\n").removesuffix("\r")
        if content:
            yield number, content.split("\t")


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line for _, line in lines(path)), strict=True)
    start = 1
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{start}: not valid CSV ({error}). Commas separate fields; a field that holds "
            "a comma, a line end or a quote stands in double quotes, and a quote in it is doubled. "
            "Is a quote left open?"
        ) from error


def _with_header(
    path: Path, records: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[Row]:
    number, header = next(records, (0, []))
    if not header:
        raise UserError(f"{path}: the file is empty; expected a header with {', '.join(columns)}.")
    picks = [find_column(f"{path}:{number}", header, column) for column in columns]
    for number, fields in records:
        if len(fields) != len(header):
            raise UserError(
                f"{path}:{number}: {len(fields)} field{'s' if len(fields) > 1 else ''} where the "
                f"header has {len(header)} ({', '.join(header)})."
            )
        yield f"{path}:{number}", tuple([fields[pick] for pick in picks])


def check_text(place: str, column: str, text: object) -> None:
    """Refuse what is no text.

    Raises:
        UserError: that begins with `place` and names the column.
    """
    if not isinstance(text, str):
        raise UserError(f"{place}: the column {column!r} is {shown(text)}; expected text.")
    if SURROGATE.search(text):
        raise UserError(
            f"{place}: the column {column!r} has half of a surrogate pair, not Unicode."
        )


def shown(value: object) -> str:
    """A value as messages show it."""
    return "empty" if value is None or value == "" else repr(value)


def find_column(place: str, header: Sequence[str], column: str) -> int:
    """The position of a column that must stand in the header once.

    Raises:
        UserError: that begins with `place` and shows the nearest names.
    """
    if header.count(column) > 1:
        raise UserError(f"{place}: {header.count(column)} columns are named {column!r}.")
    if column not in header:
        raise _no_column(place, header, column)
    return header.index(column)


def _no_column(place: str, header: Sequence[str], column: str) -> UserError:
    if not header:
        return UserError(f"{place}: no column {column!r}, nor any other.")
    return UserError(f"{place}: no column {column!r}. {nearest(column, header, kind='columns')}")


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for place, record in _objects(path):
        for column in columns:
            if column not in record:
                raise _no_column(place, list(record), column)
        yield place, tuple([record[column] for column in columns])


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines(path):
        if line.isspace():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON ({error}). Expected one object a line.") from error
        if not isinstance(record, dict):
            raise UserError(
                f"{place}: a JSON {type(record).__name__} where an object was expected, "
                'one a line: {"COLUMN": ...}.'
            )
        yield place, record


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return file.schema_arrow.names
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}).") from error


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for column in columns:
                find_column(str(path), file.schema_arrow.names, column)
            for batch in file.iter_batches(columns=list(columns)):
                lists = [batch.column(column).to_pylist() for column in columns]
                for values in zip(*lists, strict=True):
                    number += 1
                    yield f"{path}, row {number}", values
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f"{path}, after row {number}" if number else str(path)
        raise UserError(f"{place}: not a readable parquet file ({error}).") from error
