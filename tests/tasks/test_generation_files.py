"""Text generation on the user's own tables; what identifies the data; data from a hub."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub
import pytest

from lora_exp import tasks
from lora_exp.errors import UserError
from lora_exp.runs.checks import check, placeholders
from lora_exp.runs.config import Config, ModelConfig, TaskConfig, TrainConfig
from lora_exp.tasks.data import GenerationData, Pair, Source
from lora_exp.tasks.generation import fingerprint

REPOSITORY = Path(__file__).resolve().parents[2]


def config(folder: Path, **changes: Any) -> TaskConfig:
    values: dict[str, Any] = {"name": "mine", "kind": "generation", "data_dir": str(folder)}
    return TaskConfig(**(values | changes))


def load(folder: Path, **changes: Any) -> GenerationData:
    return tasks.load_generation(config(folder, **changes))


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **changes)
    return str(caught.value)


def fill(folder: Path, *rows: dict[str, Any], splits: tuple[str, ...] = ("train", "dev")) -> Path:
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# The user's tables

ROW = {"source": "a", "references": ["x", "y"]}


def test_a_column_of_lists(tmp_path):
    fill(tmp_path, ROW, {"source": " b\n", "references": ["z  z\n"]}, {**ROW, "references": ["w"]})
    data = load(tmp_path)
    assert data.train == [
        Pair("a", "x"),
        Pair("a", "y"),
        Pair(" b\n", "z  z\n"),  # white space of the user's own text stays
        Pair("a", "w"),
    ]
    assert data.test == [Source("a", ("x", "y", "w")), Source(" b\n", ("z  z\n",))]
    assert data.validation == {"validation": data.test}


def test_several_columns_of_which_some_may_be_empty(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").write_text("question,one,two\nq,a,b\nr,,c\n")
    data = load(tmp_path, source="question", references=["two", "one"])
    assert data.train == [Pair("q", "b"), Pair("q", "a"), Pair("r", "c")]
    (tmp_path / "valid.csv").write_text("question,one,two\nq,a,b\nr,, \n")
    message = refused(tmp_path, source="question", references=["two", "one"])
    assert message == f"{tmp_path / 'valid.csv'}:3: no reference; expected a text in two or one."


def test_parquet_with_numbers_in_the_template(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"n": [1, 2], "of it": ["x", "y"], "out": [["a"], ["b", "c"]]})
    for split in ("train", "validation"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    data = load(tmp_path, template="{{{n}}} {of it} {n}:", references=["out"])
    assert data.train == [Pair("{1} x 1:", "a"), Pair("{2} y 2:", "b"), Pair("{2} y 2:", "c")]


def test_a_test_split_of_its_own(tmp_path):
    fill(tmp_path, ROW)
    fill(tmp_path, {"source": "t", "references": ["u"]}, splits=("held_out",))
    data = load(tmp_path, test="held_out")
    assert data.test == [Source("t", ("u",))]
    assert list(data.validation) == ["validation"]
    assert "no file for the split 'test'" in refused(tmp_path, test="test")


@pytest.mark.parametrize(
    ("row", "changes", "expected"),
    [
        ({"source": 3, "references": ["x"]}, {}, "the column 'source' is 3; expected text."),
        ({"source": " ", "references": ["x"]}, {}, "the source is empty."),
        ({"source": "a", "references": []}, {}, "no reference; expected a text in references."),
        ({"source": "a", "references": ["x", 3]}, {}, "the column 'references' is 3; expected"),
        ({"source": "a", "references": ["\ud800"]}, {}, "the column 'references' has half of a"),
        ({"q": None, "references": "x"}, {"template": "{q}?"}, "the column 'q' is empty; expected"),
        ({"q": "a", "references": "x"}, {"template": "{p}"}, "no column 'p'."),
        ({"source": "a", "reference": "x"}, {}, "no column 'references'. Did you mean reference?"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(tmp_path, row, changes, expected):
    good = {"source": "a", "q": "a", "p": "a", "references": "x", "reference": "x"}
    fill(tmp_path, good, row)
    assert refused(tmp_path, **changes).startswith(f"{tmp_path / 'train.jsonl'}:2: {expected}")


def test_a_split_without_rows_and_one_without_file(tmp_path):
    fill(tmp_path, splits=("train",))
    message = refused(tmp_path)
    assert "no file for the split 'validation'" in message
    assert "Looked for validation.tsv, validation.csv" in message
    fill(tmp_path)
    assert refused(tmp_path) == f"task mine: the split 'train' in {tmp_path} has no rows."


def test_the_first_training_examples(tmp_path):
    fill(tmp_path, ROW, {"source": "b", "references": ["z"]})
    data = load(tmp_path, train_examples=2)
    assert data.train == [Pair("a", "x"), Pair("a", "y")]
    assert len(data.test) == 2
    message = "task.train_examples=4: the training data of task mine has 3."
    assert refused(tmp_path, train_examples=4) == message


def test_the_first_training_examples_of_a_task_with_labels(tmp_path):
    task = TaskConfig(name="agreement", kind="agreement")
    whole = tasks.load(task)
    task.train_examples = 100
    data = tasks.load(task)
    assert data.train.texts == whole.train.texts[:100]
    assert data.train.labels == whole.train.labels[:100]
    assert data.validation == whole.validation
    task.train_examples = 4001
    with pytest.raises(UserError, match=r"train_examples=4001: .* has 4000\."):
        tasks.load(task)


def test_a_task_of_generation_has_no_labels(tmp_path):
    with pytest.raises(ValueError, match="no labels"):
        tasks.load(config(fill(tmp_path, ROW)))


# The config


def problems(**changes: Any) -> str:
    task = config(Path("DIR"), **changes)
    with pytest.raises(UserError) as caught:
        check(Config(task=task, model=ModelConfig("gpt2"), train=TrainConfig(lr=1.0)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data_dir": None}, "task.data_dir=null: give the folder with the data"),
        ({"text": ["a"]}, "task.text=['a']: is for labels; here: task.source or task.template."),
        ({"references": []}, "task.references=[]: name at least one column."),
        ({"corpus": "e2"}, "task.corpus=e2: must be one of e2e, webnlg, dart."),
        ({"corpus": "e2e", "template": "{a}"}, "task.template={a}: task.corpus=e2e has its own."),
        ({"corpus": "e2e", "source": "a"}, "task.source=a: task.corpus=e2e has its own."),
        ({"template": "no column"}, "task.template=no column: name a column in braces"),
        ({"template": "{a"}, "task.template={a: expected '}' before end of string."),
        ({"template": "{}"}, "task.template={}: braces hold the name of a column and nothing else"),
        ({"template": "{a.__class__}"}, "task.template={a.__class__}: braces hold the name"),
        ({"data_dir": None, "hub": "a/b", "format": "txt"}, "task.format=txt: is of files;"),
        ({"train_examples": 0}, "task.train_examples=0: must be greater than 0."),
    ],
)
def test_impossible_values_are_refused(changes, expected):
    assert problems(**changes).startswith(expected)


def test_placeholders_are_columns_each_once():
    assert placeholders("{a} {{b}} {c d} {a}") == ["a", "c d"]
    for template in ("{0}", "{a!r}", "{a:>3}", "{a[0]}"):
        with pytest.raises(ValueError, match="the name of a column"):
            placeholders(template)


# Fingerprints


def test_the_fingerprint_follows_content_splits_and_columns(tmp_path):
    fill(tmp_path, ROW, splits=("train", "dev", "test"))
    plain = config(tmp_path)
    assert tasks.fingerprint(plain) == fingerprint(plain)
    known = {
        fingerprint(plain),
        fingerprint(config(tmp_path, test="test")),
        fingerprint(config(tmp_path, corpus="e2e")),
        fingerprint(config(tmp_path, template="{source}")),
        fingerprint(config(tmp_path, references=["source"])),
    }
    assert fingerprint(config(tmp_path, format="jsonl")) in known
    fill(tmp_path, ROW, ROW, splits=("dev",))
    known.add(fingerprint(plain))
    assert len(known) == 6


def test_the_fingerprint_covers_every_file_of_a_folder(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / split / "1triples").mkdir(parents=True)
        for name in ("a.xml", "b.xml"):
            (tmp_path / split / "1triples" / name).write_text(f"<{name[0]}/>")
    task = config(tmp_path, corpus="webnlg")
    before = fingerprint(task)
    (tmp_path / "train" / "1triples" / "b.xml").write_text("<c/>")
    assert fingerprint(task) != before


def test_the_fingerprint_of_a_hub_data_set_asks_nobody():
    task = TaskConfig(name="e2e", kind="generation", corpus="e2e", hub="tuetschek/e2e_nlg")
    assert tasks.fingerprint(task) == "hub:tuetschek/e2e_nlg:None"


# The hub


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A hub with the branch of converted files of one data set, in two parts for training."""
    import pyarrow
    from pyarrow import parquet

    top = tmp_path_factory.mktemp("hub")
    folder = top / "datasets" / "tuetschek" / "e2e_nlg" / "default"
    for part in ("train/0000", "train/0001", "validation/0000", "test/0000"):
        path = folder / f"{part}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"meaning_representation": ["name[A]"], "human_reference": [f"A {part}."]}
        parquet.write_table(pyarrow.table(columns), path)
    with hub.serve(top) as address:
        yield address


LOADED = """
import json, sys
from lora_exp import tasks
from lora_exp.errors import UserError
from lora_exp.runs.config import TaskConfig
changes = json.loads(sys.argv[1])
values = dict(name="e2e", kind="generation", corpus="e2e", hub="tuetschek/e2e_nlg", test="test")
try:
    data = tasks.load_generation(TaskConfig(**(values | changes)))
    print(json.dumps([[pair.target for pair in data.train], data.test[0].references]))
except UserError as error:
    print(json.dumps(str(error)))
"""


def told(endpoint: str, home: Path, **changes: Any) -> Any:
    """From a Python of its own: the library reads where the hub is only once."""
    result = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(changes)],
        cwd=REPOSITORY,
        env=hub.environment(endpoint, home),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_hub_s_parquet_is_downloaded_once_and_then_read_from_the_cache(endpoint, tmp_path):
    expected = [["A train/0000.", "A train/0001."], ["A test/0000."]]
    assert told(endpoint, tmp_path) == expected
    assert told(hub.nowhere(), tmp_path) == expected


def test_what_the_hub_does_not_have_says_how_to_bring_the_files(endpoint, tmp_path):
    message = told(endpoint, tmp_path, hub="org/none")
    assert message.startswith("task.hub=org/none (default): the hub (")
    assert "DIR/e2e holds the original files of e2e (train, validation, test)." in message
    message = told(endpoint, tmp_path, subset="cleaned")
    assert "its parquet form has no subset 'cleaned' (task.subset)." in message
    message = told(hub.nowhere(), tmp_path / "empty", corpus=None, references=["a", "b"])
    assert "cannot be reached, and the cache (" in message
    assert "with the columns source, a, b." in message
