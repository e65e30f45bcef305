"""Which files a task reads, what identifies them, and what is said where they are missing."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from folders import ROWS, config, refused, write

from lora_exp import tasks
from lora_exp.errors import UserError
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks.classification import fingerprint, load

REPOSITORY = Path(__file__).resolve().parents[2]
GLUE = REPOSITORY.parent / "shared" / "data" / "glue"

# Files


def test_a_folder_of_its_own_goes_before_the_folder_above(folder):
    assert len(load(config(folder)).train) == 3
    write(folder / "mine" / "train.tsv", ROWS[:2])
    write(folder / "mine" / "validation.tsv", ROWS)
    data = load(config(folder))
    assert (len(data.train), len(data.validation["validation"])) == (2, 3)


def test_texts_and_labels_are_those_of_the_file(folder):
    data = load(config(folder))
    assert data.train.texts == [("a b",), ("c",), ("d",)]
    assert data.train.labels == [0, 1, 0]
    assert data.labels == ("no", "yes")
    assert data.outputs == 2
    assert data.validation["validation"].texts == [("a b",), ("c",)]


def test_two_texts_come_in_the_order_asked_for(tmp_path):
    header = ("first", "second", "label")
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / name, [("a", "b", 0), ("c", "d", 1)], header)
    data = load(config(tmp_path, text=["second", "first"]))
    assert data.train.texts == [("b", "a"), ("d", "c")]


def test_matched_and_mismatched_have_the_names_that_glue_gives_them(tmp_path):
    names = ["validation_matched", "validation_mismatched"]
    for matched in ("dev_matched", "dev", "validation", "validation_matched"):
        folder = tmp_path / matched
        write(folder / "train.tsv")
        write(folder / f"{matched}.tsv", ROWS[:1])
        write(folder / "dev_mismatched.tsv", ROWS[:2])
        data = load(config(folder, validation=names))
        assert {name: len(split) for name, split in data.validation.items()} == {
            "validation_matched": 1,
            "validation_mismatched": 2,
        }


def test_another_split_has_a_file_of_its_name(folder):
    write(folder / "hard.tsv", ROWS[1:])
    data = load(config(folder, validation=["hard", "validation"]))
    assert list(data.validation) == ["hard", "validation"]


def test_shards_as_on_the_hub_are_read_in_order(tmp_path):
    for number, row in enumerate(ROWS):
        write(tmp_path / f"train-{number:05}-of-00003.parquet", [row])
    write(tmp_path / "validation-00000-of-00001-0123456789abcdef.parquet")
    assert load(config(tmp_path)).train.texts == [("a b",), ("c",), ("d",)]
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    message = refused(config(tmp_path))
    assert "the split 'train' is 2 of 3 shards (train-00000-of-00003.parquet, " in message


def test_two_files_for_a_split_are_refused(folder):
    write(folder / "dev.csv")
    message = refused(config(folder))
    assert "each of dev.csv, dev.tsv could be the split 'validation'. Keep one" in message
    write(folder / "train-00000-of-00001.parquet")
    message = refused(config(folder))
    assert "each of train-00000-of-00001.parquet, train.tsv could be the split 'train'" in message


def test_no_file_for_a_split_tells_what_was_looked_for_and_what_is_there(folder):
    (folder / "dev.tsv").rename(folder / "test.tsv")
    (folder / "other").mkdir()
    message = refused(config(folder))
    assert f"task mine: no file for the split 'validation' in {folder}." in message
    assert (
        "validation.tsv, validation.csv, validation.jsonl, validation.parquet, dev.tsv" in message
    )
    assert "there is other/, test.tsv, train.tsv." in message
    assert f"There is no folder {folder / 'mine'} either." in message


def test_a_folder_that_does_not_exist_tells_its_neighbours(folder):
    (folder / "glue").mkdir()
    message = refused(config(folder / "gleu"))
    assert message == f"task.data_dir={folder / 'gleu'} does not exist. Did you mean glue?"
    message = refused(config(folder / "train.tsv"))
    assert message.startswith(f"task.data_dir={folder / 'train.tsv'} is not a folder.")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_rows_is_refused(folder, split):
    write(folder / ("train.tsv" if split == "train" else "dev.tsv"), [])
    message = refused(config(folder, labels=["no", "yes"]))
    assert message == f"task mine: the split '{split}' in {folder} has no rows."


def test_a_missing_column_is_named_with_its_file(folder):
    message = refused(config(folder, text=["txt"]))
    assert message == f"{folder / 'train.tsv'}:1: no column 'txt'. Did you mean text?"
    message = refused(config(folder, label="class"))
    assert message.endswith("no column 'class'. There are columns: label, text.")


def test_a_task_without_data(tmp_path, monkeypatch):
    task = TaskConfig(name="mine", text=["text"])
    assert refused(task) == "task mine has no data: give task.data_dir=DIR or task.hub=ID."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    for name in ("json", "org/name", "./org/name", "/a/b"):
        task.hub = name
        assert refused(task).startswith(f"task.hub={name}: not a data set's id on the hub")


# Fingerprints


def test_the_fingerprint_is_of_contents_not_of_names_or_places(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "mine"
    other.mkdir()
    (other / "train.tsv.gz").write_bytes(gzip.compress((folder / "train.tsv").read_bytes()))
    (other / "validation.tsv").write_bytes((folder / "dev.tsv").read_bytes())
    known = fingerprint(config(folder))
    assert known.startswith("files:")
    assert fingerprint(config(other)) == known
    assert fingerprint(config(other.parent)) == known


def test_the_fingerprint_follows_content_columns_and_splits(folder):
    write(folder / "extra.tsv")
    known = {
        fingerprint(config(folder)),
        fingerprint(config(folder, text=["label"])),
        fingerprint(config(folder, label="text")),
        fingerprint(config(folder, validation=["extra"])),
        fingerprint(config(folder, validation=["validation", "extra"])),
    }
    write(folder / "dev.tsv", ROWS[1:])
    known.add(fingerprint(config(folder)))
    (folder / "train.tsv").rename(folder / "train.csv")
    known.add(fingerprint(config(folder)))
    assert len(known) == 7


def test_the_fingerprint_of_a_hub_data_set_asks_nobody():
    task = TaskConfig(name="rte", hub="nyu-mll/glue", subset="rte", text=["sentence1"])
    assert tasks.fingerprint(task) == "hub:nyu-mll/glue:rte"


def test_the_fingerprint_of_files_that_are_missing(tmp_path):
    with pytest.raises(UserError, match="no file for the split 'train'"):
        fingerprint(config(tmp_path))


def test_fingerprints_and_tsv_need_no_heavy_library(folder):
    code = (
        "import sys; from lora_exp import tasks; from lora_exp.runs.config import TaskConfig;"
        "task = TaskConfig(name='mine', data_dir=sys.argv[1], text=['text']);"
        "tasks.fingerprint(task); tasks.load(task);"
        "heavy = {'torch', 'datasets', 'pyarrow', 'sklearn', 'scipy', 'numpy', 'huggingface_hub'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


# The real data

needs_glue = pytest.mark.skipif(not GLUE.is_dir(), reason="../shared/data/glue is not here")


@needs_glue
@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("cola", 8551, [1043]),
        ("mrpc", 3668, [408]),
        ("rte", 2490, [277]),
        ("stsb", 5749, [1500]),
        ("qnli", 2000, [5463]),
        ("qqp", 18133, [40430]),
        ("mnli", 12807, [9815, 9832]),
    ],
)
def test_glue_has_the_rows_that_its_readme_counts(name, train, validation):
    values = yaml.safe_load((REPOSITORY / "conf" / "task" / f"{name}.yaml").read_text())["task"]
    data = load(TaskConfig(**values, data_dir=str(GLUE)))
    assert len(data.train) == train
    assert [len(split) for split in data.validation.values()] == validation
    counts = {"qnli": [1019, 981], "qqp": [11356, 6777], "mnli": [4176, 4296, 4335]}
    if name in counts:
        assert [data.train.labels.count(number) for number in range(data.outputs)] == counts[name]
    if name == "stsb":
        labels = data.train.labels
        assert (min(labels), max(labels)) == (0.0, 5.0)
