"""The metrics of GLUE.

Those of classes are a few sums, equal to scikit-learn's, whose import takes a second."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from lora_exp.errors import UserError
from lora_exp.tasks.data import TaskData

if TYPE_CHECKING:
    from numpy.typing import NDArray

Numbers: TypeAlias = "Sequence[int] | Sequence[float] | NDArray"


def default_metrics(data: TaskData) -> list[str]:
    """What measures a task that names no metrics; the first decides the best epoch.

    Accuracy and F1 for two classes, accuracy for more, Pearson and Spearman for regression.
    """
    if data.labels is None:
        return ["pearson", "spearman"]
    return ["accuracy", "f1"] if len(data.labels) == 2 else ["accuracy"]


def choose_metrics(names: Sequence[str] | None, data: TaskData) -> list[str]:
    """The metrics of a task, checked against its data before anything is trained.

    Args:
        names: `task.metrics`; None takes `default_metrics`.

    Raises:
        UserError: for a metric that does not fit the labels.
    """
    if names is None:
        return default_metrics(data)
    if data.labels is None:
        what, fitting = "a number to predict", ["pearson", "spearman"]
    else:
        what, fitting = f"{len(data.labels)} classes", ["accuracy", "matthews_correlation"]
        if len(data.labels) == 2:
            fitting.append("f1")
    for name in names:
        if name not in fitting:
            raise UserError(
                f"task.metrics: {name} does not fit {what}; use {' or '.join(fitting)}."
            )
    return list(names)


def measure(names: Sequence[str], predictions: Numbers, labels: Numbers) -> dict[str, float]:
    """Measure predictions against labels.

    Accuracy, F1 (of class 1, as in GLUE) and Matthews correlation of class numbers; Pearson and
    Spearman correlation of numbers. All as fractions, 1 is perfect. What is undefined counts as
    none, 0: the correlation with constant or non-finite predictions or labels, or of fewer than
    two examples, and F1 where class 1 occurs neither in the predictions nor in the labels.

    Args:
        names: of `lora_exp.runs.config.METRICS`.
        predictions: class numbers, or predicted numbers; one per example.
        labels: the same of what is right; as many.

    Raises:
        UserError: for F1 of more than two classes.
    """
    if len(predictions) != len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    # The libraries warn of undefined values, which are defined above.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: _MEASURES[name](predictions, labels) for name in names}


def _accuracy(predictions: Numbers, labels: Numbers) -> float:
    said, right = _classes(predictions, labels)
    return float(np.mean(said == right))


def _f1(predictions: Numbers, labels: Numbers) -> float:
    said, right = _classes(predictions, labels)
    if not {*said.tolist(), *right.tolist()} <= {0, 1}:
        raise UserError(
            "task.metrics=f1 is the F1 of class 1 against class 0, as in GLUE; this task has more "
            "than two classes. Use task.metrics=[accuracy]."
        )
    found = int((said & right).sum())
    return 2 * found / max(1, int(said.sum() + right.sum()))


def _matthews(predictions: Numbers, labels: Numbers) -> float:
    """Of any number of classes (Gorodkin 2004)."""
    said, right = _classes(predictions, labels)
    names = np.unique([said, right])
    of_said, of_right = (np.sum(one == names[:, None], axis=1) for one in (said, right))
    agreement, of_one, of_other = (
        int(np.sum(said == right)) * len(said) - int(of_said @ of_right),
        len(said) ** 2 - int(of_said @ of_said),
        len(said) ** 2 - int(of_right @ of_right),
    )
    return agreement / math.sqrt(of_one * of_other) if of_one and of_other else 0.0


def _classes(predictions: Numbers, labels: Numbers) -> tuple[NDArray, NDArray]:
    return np.asarray(predictions, dtype=np.int64), np.asarray(labels, dtype=np.int64)


def _pearson(predictions: Numbers, labels: Numbers) -> float:
    from scipy.stats import pearsonr

    return _defined(pearsonr, predictions, labels)


def _spearman(predictions: Numbers, labels: Numbers) -> float:
    from scipy.stats import spearmanr

    return _defined(spearmanr, predictions, labels)


def _defined(statistic: Callable, predictions: Numbers, labels: Numbers) -> float:
    if len(labels) < 2:
        return 0.0
    value = float(statistic(predictions, labels).statistic)
    return value if math.isfinite(value) else 0.0


_MEASURES: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
