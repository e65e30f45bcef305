"""Data that cannot be trained on: told with the file and the line, before a run is made."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_exp import tasks
from lora_exp.errors import UserError
from lora_exp.runs.config import TaskConfig

LONG = commands.LONG in os.environ
TABLE = b"text\tlabel\nthe king smiles\tno\nthe nurse sings\tyes\n"
CSV = b"text,label\nthe king smiles,no\nthe nurse sings,yes\n"
LINES = b'{"text": "the king smiles", "label": "no"}\n{"text": "the nurse sings", "label": "yes"}\n'
BIG = b"a " * 5_000_000

# file -> (its content, what is said of it)
TABLES: dict[str, dict[str, tuple[bytes, str]]] = {
    "train.tsv": {
        "empty": (b"", "train.tsv: the file is empty; expected a header with"),
        "blank lines alone": (b"\n\n\n", "the file is empty"),
        "only a header": (b"text\tlabel\n", "has the classes []; expected at least two"),
        "UTF-16": (TABLE.decode().encode("utf-16"), "train.tsv:1: "),
        "Latin-1": (TABLE.replace(b"king", b"k\xf6nig"), "train.tsv:2: byte 0xf6 at position 5"),
        "a NUL byte": (TABLE.replace(b"king", b"k\0ng"), "train.tsv:2: has a NUL byte"),
        "cut in a character": (TABLE + b"\xe2\x82", "train.tsv:4: byte 0xe2"),
        "no such column": (TABLE.replace(b"text", b"txt"), "no column 'text'. Did you mean txt?"),
        "no label": (TABLE.replace(b"label", b"lable"), "Did you mean lable?"),
        "a column twice": (b"text\ttext\tlabel\na\tb\tc\nd\te\tf\n", "2 columns are named 'text'"),
        "too few fields": (TABLE + b"alone\n", "train.tsv:4: 1 field where the header has 2"),
        "too many fields": (TABLE + b"a\tb\tc\n", "train.tsv:4: 3 fields where the header has 2"),
        "no text": (TABLE + b"\tno\n", "train.tsv:4: the column 'text' is empty"),
        "no label there": (TABLE + b"a\t\n", "train.tsv:4: the label is empty"),
        "one class": (b"text\tlabel\na\tno\nb\tno\n", "[no]; expected at least two"),
        "ESC in a header": (b"\x1b[2Jtext\tlabel\na\tno\nb\tyes\n", "no column 'text'"),
        "a folder": (b"FOLDER", "train.tsv"),
    },
    "train.csv": {
        "an open quote": (CSV + b'"open,no\n', "train.csv:4: not valid CSV"),
        "a quote inside": (CSV + b'"a"b,no\n', "train.csv:4: not valid CSV"),
        "a field of 10 MB": (CSV + BIG + b",no\n", "train.csv:4: not valid CSV (field larger"),
        "another separator": (
            CSV.replace(b",", b";"),
            "no column 'label'. Did you mean text;label?",
        ),
        "Latin-1": (CSV.replace(b"king", b"k\xf6nig"), "train.csv:2: byte 0xf6"),
    },
    "train.jsonl": {
        "no JSON": (LINES + b"{text: 1}\n", "train.jsonl:3: not JSON"),
        "a list": (LINES + b"[1, 2]\n", "train.jsonl:3: a JSON list where an object was expected"),
        "one document": (b"[\n" + LINES + b"]\n", "train.jsonl:1: not JSON"),
        "no text": (LINES + b'{"label": "no"}\n', "train.jsonl:3: no column 'text'."),
        "a number for text": (LINES + b'{"text": 3, "label": "no"}\n', "is 3; expected text."),
        "null for text": (LINES + b'{"text": null, "label": "no"}\n', "is empty; expected text."),
        "a list as label": (LINES + b'{"text": "a", "label": []}\n', "the label is []"),
        "a half pair": (
            LINES + b'{"text": "\\ud800", "label": "no"}\n',
            "half of a surrogate pair",
        ),
        "nested deeply": (LINES + b"[" * 100_000 + b"\n", "train.jsonl:3: not JSON"),
        "NaN as label": (LINES + b'{"text": "a", "label": NaN}\n', "the label is nan"),
    },
    "train.parquet": {
        "garbage": (b"PAR1" + b"x" * 100, "train.parquet: not a readable parquet file"),
        "empty": (b"", "train.parquet: not a readable parquet file"),
    },
    "train.tsv.gz": {
        "no gzip": (TABLE, "train.tsv.gz: not a readable gzip file"),
        "cut": (gzip.compress(TABLE * 1000)[:-20], "not a readable gzip file"),
        "empty": (b"", "the file is empty"),
    },
    "trian.tsv": {"misspelt": (TABLE, "no file for the split 'train' in")},
}
CASES = [(file, how) for file, cases in TABLES.items() for how in cases]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "validation.tsv").write_bytes(TABLE)
    return folder


def overrides(folder: Path, model: Path) -> list[str]:
    words = ["task=classification", "task.name=mine", f"task.data_dir={folder}"]
    return [*words, "task.text=[text]", f"model.name_or_path={model}"]


@pytest.mark.parametrize(("file", "how"), CASES, ids=[f"{file}: {how}" for file, how in CASES])
def test_a_table(data: Path, tiny: Path, tmp_path: Path, file: str, how: str) -> None:
    content, expected = TABLES[file][how]
    if content == b"FOLDER":
        (data / file).mkdir()
    else:
        (data / file).write_bytes(content)
    told = commands.refused(tmp_path / "outputs", *overrides(data, tiny))
    assert expected in told
    assert file.split(".")[0] in told


MORE: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "a label out of range": (
        lambda folder: (folder / "validation.tsv").write_bytes(TABLE.replace(b"yes", b"7")),
        [],
        "validation.tsv:3: unknown label '7'. Known are: no, yes, 0, 1.",
    ),
    "a label that is none of those given": (
        lambda folder: None,
        ["task.labels=[a,b]"],
        "train.tsv:2: unknown label 'no'. Known are: a, b, 0, 1.",
    ),
    "the same label twice": (lambda folder: None, ["task.labels=[no,no]"], "all different"),
    "no number": (
        lambda folder: None,
        ["task.regression=true"],
        "train.tsv:2: the label is 'no'; expected a finite number.",
    ),
    "an infinite number": (
        lambda folder: (folder / "train.tsv").write_bytes(b"text\tlabel\na\tinf\nb\t1\n"),
        ["task.regression=true"],
        "the label is 'inf'; expected a finite number.",
    ),
    "two files for a split": (
        lambda folder: (folder / "train.csv").write_bytes(CSV),
        [],
        "each of train.csv, train.tsv could be the split 'train'. Keep one of them.",
    ),
    "no validation": (
        lambda folder: (folder / "validation.tsv").unlink(),
        [],
        "no file for the split 'validation' in",
    ),
    "a shard is missing": (
        lambda folder: (folder / "train.tsv").rename(folder / "train-00000-of-00002.parquet"),
        [],
        "the split 'train' is 1 of 2 shards",
    ),
    "no such column": (lambda folder: None, ["task.text=[sentence]"], "no column 'sentence'."),
    "three columns": (lambda folder: None, ["task.text=[a,b,c]"], "name one or two columns"),
    "a file that may not be read": (
        lambda folder: (folder / "train.tsv").chmod(0),
        [],
        "train.tsv",
    ),
    "a name that is not UTF-8": (
        lambda folder: (
            Path(os.fsdecode(os.fsencode(folder) + b"/train\xff.tsv")).write_bytes(TABLE)
            and (folder / "train.tsv").unlink()
        ),
        [],
        "no file for the split 'train' in",
    ),
    "a loop of links": (
        lambda folder: (folder / "train.csv").symlink_to("train.csv"),
        [],
        "train.csv: not a readable file (",
    ),
}


@pytest.mark.parametrize("how", MORE)
def test_a_folder(data: Path, tiny: Path, tmp_path: Path, how: str) -> None:
    if how == "a file that may not be read" and os.geteuid() == 0:
        return  # root reads everything
    if how != "a loop of links":
        (data / "train.tsv").write_bytes(TABLE)
    spoil, more, expected = MORE[how]
    spoil(data)
    told = commands.refused(tmp_path / "outputs", *overrides(data, tiny), *more)
    assert expected in told


TEXTS = {
    "no template": (["task.template='no column'"], "name a column in braces"),
    "a template with code": (
        ["task.template='{source.__class__}'"],
        "braces hold the name of a column and nothing else",
    ),
    "an open brace": (["task.template='{source'"], "task.template"),
    "no such column": (["task.template='{a}'"], "no column 'a'"),
    "no references": (["task.references=[]"], "name at least one column"),
    "no such references": (["task.references=[a]"], "no column 'a'"),
    "no such format": (["task.format=doc"], "task.format=doc: no format of this task."),
    "no such corpus": (["task.corpus=e3e"], "task.corpus=e3e: must be one of e2e, webnlg, dart."),
    "no such split": (["task.test=tset"], "no file for the split 'tset'"),
}


@pytest.mark.parametrize("how", TEXTS)
def test_texts(data: Path, tiny: Path, tmp_path: Path, how: str) -> None:
    for split in ("train", "validation"):
        row = json.dumps({"source": "the king", "references": ["the king smiles"]})
        (data / f"{split}.jsonl").write_text(row + "\n")
    (data / "validation.tsv").unlink()
    more, expected = TEXTS[how]
    given = ["task=generation", "task.name=mine", f"task.data_dir={data}"]
    told = commands.refused(tmp_path / "outputs", *given, f"model.name_or_path={tiny}", *more)
    assert expected in told


@settings(
    max_examples=3000 if LONG else 200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["tsv", "csv", "jsonl", "tsv.gz", "parquet"]),
    st.binary(max_size=60),
    st.sampled_from([b"", TABLE, CSV, LINES]),
    st.integers(0, 80),
)
def test_whatever_stands_in_a_file(
    data: Path, ending: str, noise: bytes, table: bytes, place: int
) -> None:
    """It is read, or refused with the file's name."""
    file = data / f"train.{ending}"
    file.write_bytes(table[:place] + noise + table[place:])
    try:
        found = tasks.load(TaskConfig("mine", data_dir=str(data), text=["text"]))
        assert len(found.train) > 0
    except UserError as error:
        told = str(error)
        assert str(data) in told
    finally:
        file.unlink()
