"""Text and labels: which class a value is, and what is said of mistakes."""

from __future__ import annotations

import pytest
from folders import config, refused, write

from lora_exp.tasks.classification import load

# Text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "empty"), ("", "empty"), (3, "3"), (["a"], "['a']")],
)
def test_text_that_is_none(folder, value, shown):
    (folder / "train.tsv").unlink()
    path = write(folder / "train.jsonl", [("a", "no"), (value, "yes")])
    message = refused(config(folder))
    assert message == f"{path}:2: the column 'text' is {shown}; expected text."


def test_an_empty_field_and_a_null_in_parquet(folder):
    path = write(folder / "train.tsv", [("a", "no"), ("", "yes")])
    assert refused(config(folder)).startswith(f"{path}:3: the column 'text' is empty")
    path.unlink()
    path = write(folder / "train.parquet", [("a", "no"), (None, "yes")])
    assert refused(config(folder)).startswith(f"{path}, row 2: the column 'text' is empty")


def test_one_text_of_a_pair_may_be_empty_but_not_both(folder):
    (folder / "train.tsv").unlink()
    path = folder / "train.tsv"
    path.write_text("text\tother\tlabel\na\t\tno\n\tb\tyes\n")
    (folder / "dev.tsv").write_text("text\tother\tlabel\na\tb\tno\n")
    pair = config(folder, text=["text", "other"])
    assert load(pair).train.texts == [("a", ""), ("", "b")]
    path.write_text("text\tother\tlabel\na\t\tno\n\t\tyes\n")
    assert refused(pair).startswith(f"{path}:3: the column 'text' is empty")


def test_half_of_a_surrogate_pair(folder):
    (folder / "train.tsv").unlink()
    path = write(folder / "train.jsonl", [("\U0001f600", "no"), ("\ud800", "yes")])
    assert refused(config(folder)).startswith(f"{path}:2: the column 'text' has half of a surro")


# Classes


@pytest.mark.parametrize("name", ["train.tsv", "train.jsonl", "train.parquet"])
def test_a_label_is_a_name_or_a_number(folder, name):
    (folder / "train.tsv").unlink()
    write(folder / name, [("a", "1"), ("b", "yes"), ("c", "0"), ("d", "no")])
    data = load(config(folder, labels=["yes", "no"]))
    assert data.labels == ("yes", "no")
    assert data.train.labels == [1, 0, 0, 1]
    assert data.validation["validation"].labels == [1, 0]


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_a_number_may_be_a_number(folder, name):
    (folder / "train.tsv").unlink()
    write(folder / name, [("a", 1), ("b", 0)])
    assert load(config(folder, labels=["yes", "no"])).train.labels == [1, 0]


def test_where_names_are_numbers_a_number_is_a_name(folder):
    for name in ("train.tsv", "dev.tsv"):
        write(folder / name, [("a", 1), ("b", 2)])
    assert load(config(folder, labels=["2", "1"])).train.labels == [1, 0]
    write(folder / "dev.tsv", [("a", 0)])
    assert "unknown label '0'. Known are: 2, 1." in refused(config(folder, labels=["2", "1"]))


def test_names_come_from_the_training_data_sorted_numbers_as_numbers(folder):
    write(folder / "train.tsv", [("a", "10"), ("b", "9"), ("c", "-1")])
    write(folder / "dev.tsv", [("a", "9")])
    data = load(config(folder))
    assert data.labels == ("-1", "9", "10")
    assert data.train.labels == [2, 1, 0]
    assert data.validation["validation"].labels == [1]


def test_json_truth_values_are_classes(folder):
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").unlink()
        write(folder / f"{name}.jsonl", [("a", True), ("b", False)])
    data = load(config(folder))
    assert (data.labels, data.train.labels) == (("False", "True"), [1, 0])


def test_an_unknown_label_tells_its_place_and_the_known_ones(folder):
    path = write(folder / "train.tsv", [("a", "no"), ("b", "maybe"), ("c", "yes")])
    message = refused(config(folder, labels=["no", "yes"]))
    assert message == f"{path}:3: unknown label 'maybe'. Known are: no, yes, 0, 1."
    write(folder / "train.tsv")
    path = write(folder / "dev.tsv", [("a", "maybe")])
    assert refused(config(folder)) == f"{path}:2: unknown label 'maybe'. Known are: no, yes, 0, 1."
    path = write(folder / "dev.tsv", [("a", "2")])
    assert refused(config(folder)).startswith(f"{path}:2: unknown label '2'.")


@pytest.mark.parametrize(("value", "shown"), [(None, "empty"), ("", "empty"), (0.5, "0.5")])
def test_a_label_that_is_no_class(folder, value, shown):
    (folder / "train.tsv").unlink()
    path = write(folder / "train.jsonl", [("a", "no"), ("b", value)])
    message = refused(config(folder, labels=["no", "yes"]))
    assert message.startswith(f"{path}:2: the label is {shown}; expected the name or the number of")
    assert "task.regression=true" in message


def test_fewer_than_two_classes_are_refused(folder):
    message = refused(config(folder, labels=["no"]))
    assert message == "task.labels has the classes [no]; expected at least two, all different."
    assert "[no, no]; expected at least two, all different" in refused(
        config(folder, labels=["no", "no"])
    )
    write(folder / "train.tsv", [("a", "no")])
    message = refused(config(folder))
    assert message.startswith(
        f"the column 'label' of the training data in {folder} has the classes"
    )


# Numbers


def test_regression(folder):
    write(folder / "train.tsv", [("a", "0"), ("b", "2.5"), ("c", "-1e-3")])
    write(folder / "dev.tsv", [("a", "5.0")])
    data = load(config(folder, regression=True))
    assert data.train.labels == [0.0, 2.5, -0.001]
    assert data.validation["validation"].labels == [5.0]
    assert (data.labels, data.outputs) == (None, 1)


@pytest.mark.parametrize("label", ["five", "nan", "-inf", "1e999", ""])
def test_a_score_that_is_no_finite_number(folder, label):
    path = write(folder / "train.tsv", [("a", "0"), ("b", label)])
    shown = repr(label) if label else "empty"
    message = refused(config(folder, regression=True))
    assert message == f"{path}:3: the label is {shown}; expected a finite number."
