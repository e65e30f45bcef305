"""Rows from files, and what is said of files that cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_exp.errors import UserError
from lora_exp.tasks.tables import SUFFIXES, digest, kind, rows

TABLE = [("a b", '1 "'), ("ü", "2")]


def values(path: Path, *columns: str) -> list[tuple]:
    return [row for _, row in rows(path, columns)]


def places(path: Path, *columns: str) -> list[str]:
    return [place for place, _ in rows(path, columns)]


def refused(path: Path, *columns: str) -> str:
    with pytest.raises(UserError) as caught:
        list(rows(path, columns or ("text", "label")))
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_table(path: Path) -> Path:
    """`TABLE` in the format of the path."""
    match kind(path):
        case "tsv":
            return write(path, "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in TABLE))
        case "csv":
            return write(path, 'text,label\na b,"1 """\nü,2\n')
        case "jsonl":
            objects = [json.dumps({"text": a, "label": b}) for a, b in TABLE]
            return write(path, "\n".join(objects))
        case _:
            import pyarrow
            from pyarrow import parquet

            columns = {"text": [a for a, _ in TABLE], "label": [b for _, b in TABLE]}
            parquet.write_table(pyarrow.table(columns), path)
            return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows_in_the_order_of_the_columns_asked_for(tmp_path, suffix):
    path = write_table(tmp_path / f"train{suffix}")
    assert values(path, "text", "label") == TABLE
    assert values(path, "label", "text") == [(b, a) for a, b in TABLE]
    assert values(path, "label") == [(b,) for _, b in TABLE]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_names_a_missing_column_and_the_nearest(tmp_path, suffix):
    path = write_table(tmp_path / f"train{suffix}")
    message = refused(path, "labell")
    assert str(path) in message
    assert "no column 'labell'. Did you mean label?" in message
    assert "There are columns: label, text." in refused(path, "premise")


def test_places_are_the_lines_on_which_rows_start(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",1\n\nlast,2\n')
    assert places(path, "text") == [f"{path}:2", f"{path}:5"]
    assert values(path, "text") == [("two\nlines",), ("last",)]
    path = write(tmp_path / "a.jsonl", '{"text": 1}\n\n{"text": 2}')
    assert places(path, "text") == [f"{path}:1", f"{path}:3"]
    path = write_table(tmp_path / "a.parquet")
    assert places(path, "text") == [f"{path}, row 1", f"{path}, row 2"]


def test_json_and_parquet_values_keep_their_types(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": null, "label": 1.5}\n{"text": [1], "label": true}')
    assert values(path, "text", "label") == [(None, 1.5), ([1], True)]


def test_windows_files_are_read_like_others(tmp_path):
    for name in ("a.tsv", "a.csv"):
        separator = "\t" if name == "a.tsv" else ","
        text = "\ufefftext,label\r\na,1\r\nb,2\r\n".replace(",", separator)
        assert values(write(tmp_path / name, text), "text", "label") == [("a", "1"), ("b", "2")]


def test_a_tsv_line_ends_at_a_line_feed_only(tmp_path):
    odd = "a\x0bb\x0c\x1c\x85\u2028c\rd"
    assert values(write(tmp_path / "a.tsv", f"text\tlabel\n{odd}\t1\n"), "text") == [(odd,)]


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0"), min_size=1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(FIELD, FIELD)))
def test_what_is_written_as_tsv_comes_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv.gz"
    write(path, "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in table))
    assert values(path, "text", "label") == table


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(CELL, CELL)))
def test_what_is_written_as_csv_comes_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *table])
    assert values(path, "text", "label") == table


def test_a_row_with_the_wrong_number_of_fields(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\t1\nb\n")
    assert refused(path) == f"{path}:3: 1 field where the header has 2 (text, label)."
    path = write(tmp_path / "a.csv", "text,label\na,b,1\n")
    assert refused(path) == f"{path}:2: 3 fields where the header has 2 (text, label)."


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.csv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file(tmp_path, name, content):
    path = write(tmp_path / name, content)
    message = "the file is empty; expected a header with text, label."
    assert refused(path) == f"{path}: {message}"


def test_two_columns_of_one_name(tmp_path):
    path = write(tmp_path / "a.tsv", "text\ttext\tlabel\na\tb\t1\n")
    assert refused(path) == f"{path}:1: 2 columns are named 'text'."


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.csv", "a.jsonl"])
def test_bytes_that_are_not_utf_8(tmp_path, name):
    header = b"" if name == "a.jsonl" else b"text\n"
    path = write(tmp_path / name, header + b'{"text": "caf\xe9"}\n')
    line = 1 if name == "a.jsonl" else 2
    assert refused(path, "text").startswith(f"{path}:{line}: byte 0xe9 at position 13 is not UTF-8")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_nul_bytes(tmp_path, name):
    path = write(tmp_path / name, "text,label\na,1\n".encode("utf-16-le"))
    assert refused(path).startswith(f"{path}:1: has a NUL byte; expected UTF-8 text.")


def test_files_that_are_not_what_their_name_says(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_text("text\tlabel\n")
    assert refused(path).startswith(f"{path}: not a readable gzip file (Not a gzipped file")
    path = tmp_path / "a.parquet"
    path.write_text("text\tlabel\n")
    assert refused(path).startswith(f"{path}: not a readable parquet file")
    assert "not a table" in refused(tmp_path / "a.xlsx")
    assert "not a readable file" in refused(tmp_path / "missing.tsv")


def test_a_gzip_file_that_was_cut_off_gives_rows_and_then_an_error(tmp_path):
    path = tmp_path / "a.tsv.gz"
    table = "text\tlabel\n" + "".join(f"{os.urandom(50).hex()}\t1\n" for _ in range(1000))
    path.write_bytes(gzip.compress(table.encode())[:-5000])
    reader = rows(path, ["label"])
    for line in range(2, 500):
        assert next(reader) == (f"{path}:{line}", ("1",))
    message = refused(path)
    assert message.startswith(f"{path}, after line ")
    assert "not a readable gzip file (Compressed file ended before" in message
    with pytest.raises(UserError, match="not a readable gzip file"):
        digest(path)


def test_broken_csv(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\na,1\n"never closed,1\nb,2\n')
    assert refused(path).startswith(f"{path}:3: not valid CSV (unexpected end of data).")
    path = write(tmp_path / "a.csv", 'text,label\na,1\n"closed" early,1\n')
    assert refused(path).startswith(f"{path}:3: not valid CSV (',' expected after '\"').")
    path = write(tmp_path / "a.csv", f"text,label\na,1\n{'x' * 140_000},1\n")
    assert refused(path).startswith(f"{path}:3: not valid CSV (field larger than field limit")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'text': 1}", "not JSON (Expecting property name"),
        ('{"text": "a"', "not JSON (Expecting ',' delimiter"),
        ("[" * 100_000, "not JSON ("),
        ("[1]", "a JSON list where an object was expected, one a line: {"),
        ("3", "a JSON int where an object was expected, one a line: {"),
        ("{}", "no column 'text', nor any other."),
        ('{"txt": "a", "label": 1}', "no column 'text'. Did you mean txt?"),
    ],
)
def test_broken_json_lines(tmp_path, line, problem):
    path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": 1}}\n{line}\n')
    assert refused(path).startswith(f"{path}:2: {problem}")


def test_the_digest_is_of_the_content_and_follows_it(tmp_path):
    plain = write(tmp_path / "a.tsv", "text\tlabel\n")
    zipped = write(tmp_path / "b.tsv.gz", "text\tlabel\n")
    before = digest(plain)
    assert before == digest(zipped)
    write(plain, "text\tlabel\na\t1\n")
    assert digest(plain) != before
