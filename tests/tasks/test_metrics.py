"""Metrics against values computed by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from lora_exp.errors import UserError
from lora_exp.runs.checks import METRICS
from lora_exp.tasks import Examples, TaskData
from lora_exp.tasks.metrics import choose_metrics, default_metrics, measure


def data(labels: tuple[str, ...] | None) -> TaskData:
    examples = Examples([("a",), ("b",)], [0, 1])
    return TaskData(examples, {"validation": examples}, labels)


TWO, THREE, NUMBERS = data(("no", "yes")), data(("a", "b", "c")), data(None)


def test_classes_by_hand():
    # Of class 1: 2 found, 1 wrongly found, 2 missed; of class 0: 3 found.
    labels = [1, 1, 1, 1, 0, 0, 0, 0]
    predictions = [1, 1, 0, 0, 1, 0, 0, 0]
    measured = measure(["accuracy", "f1", "matthews_correlation"], predictions, labels)
    assert measured == pytest.approx(
        {
            "accuracy": 5 / 8,
            "f1": 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4),
            "matthews_correlation": (2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5),
        }
    )
    assert list(measured) == ["accuracy", "f1", "matthews_correlation"]


def test_f1_is_that_of_class_1():
    assert measure(["f1"], [0, 0, 1], [0, 0, 0]) == {"f1": 0.0}
    assert measure(["f1"], [0, 0, 1], [0, 0, 1]) == {"f1": 1.0}


def test_numbers_by_hand():
    # Deviations (-1.5, -.5, .5, 1.5) and (-6, -5, -2, 13): products 30, squares 5 and 234.
    predictions, labels = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 5.0, 20.0]
    measured = measure(["pearson", "spearman"], predictions, labels)
    assert measured == pytest.approx({"pearson": 30 / math.sqrt(5 * 234), "spearman": 1.0})
    # Ranks (1.5, 1.5, 3) and (1, 2, 3) have covariance 1.5 and squared deviations 1.5 and 2.
    ties = measure(["spearman"], [0.0, 0.0, 1.0], [1.0, 2.0, 3.0])
    assert ties == pytest.approx({"spearman": 1.5 / math.sqrt(1.5 * 2)})


@pytest.mark.parametrize("predictions", [[2.0, 2.0, 2.0], [math.nan] * 3, [1.0, 2.0, math.inf]])
def test_an_undefined_correlation_is_none_and_nothing_is_said(predictions):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = measure(["pearson"], predictions, [1.0, 2.0, 3.0])
    assert measured == {"pearson": 0.0}


def test_every_metric_is_a_plain_number_whatever_the_labels():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in ([0, 0, 0], [0]):
            measured = measure(METRICS, labels, labels)
            assert measured == dict.fromkeys(METRICS, 0.0) | {"accuracy": 1.0}
    numbers = np.array([0, 1, 1])
    measured = measure(METRICS, numbers, numbers)
    assert measured == pytest.approx(dict.fromkeys(METRICS, 1.0))
    assert {type(value) for value in measured.values()} == {float}


def test_f1_of_three_classes_is_refused():
    with pytest.raises(UserError, match=r"more than two classes. Use task.metrics=\[accuracy\]"):
        measure(["f1"], [0, 1, 2], [0, 1, 1])


def test_predictions_and_labels_must_be_as_many():
    with pytest.raises(ValueError, match="2 predictions for 3 labels"):
        measure(["accuracy"], [0, 1], [0, 1, 1])


def test_metrics_of_a_task_that_names_none():
    assert default_metrics(TWO) == ["accuracy", "f1"]
    assert default_metrics(THREE) == ["accuracy"]
    assert default_metrics(NUMBERS) == ["pearson", "spearman"]
    assert choose_metrics(None, THREE) == ["accuracy"]


def test_metrics_that_do_not_fit_are_refused_before_training():
    assert choose_metrics(["matthews_correlation", "f1"], TWO) == ["matthews_correlation", "f1"]
    with pytest.raises(UserError, match="f1 does not fit 3 classes; use accuracy or matthews"):
        choose_metrics(["accuracy", "f1"], THREE)
    with pytest.raises(UserError, match=r"accuracy does not fit a number .* use pearson or"):
        choose_metrics(["accuracy"], NUMBERS)
    with pytest.raises(UserError, match="pearson does not fit 2 classes"):
        choose_metrics(["pearson"], TWO)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_of_classes_are_those_of_scikit_learn(classes):
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    random = np.random.default_rng(classes)
    for number in (5, 50, 1000):
        labels, guesses = random.integers(0, classes, (2, number))
        predictions = np.where(random.random(number) < 0.6, labels, guesses)
        expected = {
            "accuracy": accuracy_score(labels, predictions),
            "matthews_correlation": matthews_corrcoef(labels, predictions),
        }
        if classes == 2:
            expected["f1"] = f1_score(labels, predictions, zero_division=0)  # pyright: ignore
        assert measure(list(expected), predictions, labels) == pytest.approx(expected, abs=1e-14)
