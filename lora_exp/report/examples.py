"""Two runs example by example: which they answer differently, and whether that means anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_exp.report.significance import bootstrap, mcnemar
from lora_exp.runs.predictions import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Measure = Callable[[NDArray, NDArray, NDArray], NDArray]


@dataclass(frozen=True)
class Tested:
    """A difference in a metric, the second run's minus the first's."""

    difference: float
    p: float
    test: str
    """Its name, and what it went by."""


def comparable(first: Predictions, second: Predictions) -> bool:
    """They are about the same examples."""
    return first.split == second.split and list(first.labels) == list(second.labels)


def differing(first: Predictions, second: Predictions) -> list[int]:
    """The numbers of the examples, from 0, that they answer differently."""
    pairs = zip(first.predictions, second.predictions, strict=True)
    return [number for number, (one, other) in enumerate(pairs) if one != other]


def only_right(first: Predictions, second: Predictions) -> tuple[int, int]:
    """How many classes the first alone has right, and the second alone."""
    right = [
        (one == label, other == label)
        for label, one, other in zip(
            first.labels, first.predictions, second.predictions, strict=True
        )
    ]
    return right.count((True, False)), right.count((False, True))


def tested(metric: str, first: Predictions, second: Predictions) -> Tested | None:
    """Test the difference in a metric: McNemar's test of accuracies, else a paired bootstrap.

    Args:
        metric: of `lora_exp.tasks.metrics`.
        first: predictions of a run.
        second: another run's of the same examples.

    Returns:
        None for a metric that is not of single predictions, such as a loss.
    """
    measure = MEASURES.get(metric)
    if measure is None:
        return None
    import numpy as np

    answers = list(zip(first.labels, first.predictions, second.predictions, strict=True))
    kinds = Counter(answers) if first.of_classes else None  # of classes there are few
    labels, one, other = np.asarray([*(kinds or answers)], dtype=float).T
    counts = [*kinds.values()] if kinds else [1] * len(answers)

    def difference(drawn: NDArray) -> NDArray:
        return measure(drawn, labels, other) - measure(drawn, labels, one)

    gap = float(difference(np.asarray([counts]))[0])
    if metric == "accuracy":
        alone = only_right(first, second)
        return Tested(gap, mcnemar(*alone), f"McNemar's exact test, {alone[0]} against {alone[1]}")
    low, high, p = bootstrap(difference, counts)
    return Tested(gap, p, f"paired bootstrap, 95% from {low:+.4f} to {high:+.4f}")


# Each from how often each kind of example occurs, [resamples, kinds], with its label and its
# prediction, [kinds], to the metric, [resamples]; what is undefined is 0, as where it is measured.


def _accuracy(drawn: NDArray, labels: NDArray, predictions: NDArray) -> NDArray:
    return drawn @ (labels == predictions) / drawn.sum(1)


def _f1(drawn: NDArray, labels: NDArray, predictions: NDArray) -> NDArray:
    both = drawn @ ((labels == 1) & (predictions == 1))
    either = drawn @ ((labels == 1) * 1.0 + (predictions == 1))
    return _ratio(2 * both, either)


def _matthews(drawn: NDArray, labels: NDArray, predictions: NDArray) -> NDArray:
    import numpy as np

    classes = np.unique([labels, predictions])
    are = drawn @ (labels[:, None] == classes)
    said = drawn @ (predictions[:, None] == classes)
    total = drawn.sum(1)
    covariance = drawn @ (labels == predictions) * total - (are * said).sum(1)
    spread = (total**2 - (are**2).sum(1)) * 1.0 * (total**2 - (said**2).sum(1))
    return _ratio(covariance, np.sqrt(spread))


def _pearson(drawn: NDArray, labels: NDArray, predictions: NDArray) -> NDArray:
    import numpy as np

    total = drawn.sum(1)

    def covariance(one: NDArray, other: NDArray) -> NDArray:
        one, other = one - one.mean(), other - other.mean()  # less to lose by rounding
        return drawn @ (one * other) / total - (drawn @ one / total) * (drawn @ other / total)

    spread = covariance(labels, labels) * covariance(predictions, predictions)
    return _ratio(covariance(labels, predictions), np.sqrt(np.maximum(spread, 0)))


def _spearman(drawn: NDArray, labels: NDArray, predictions: NDArray) -> NDArray:
    """By the ranks among all examples, in resamples as well."""
    return _pearson(drawn, _ranks(labels), _ranks(predictions))


def _ranks(values: NDArray) -> NDArray:
    """Equal values share the mean of their ranks."""
    import numpy as np

    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[places]


def _ratio(above: NDArray, below: NDArray) -> NDArray:
    import numpy as np

    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


MEASURES: dict[str, Measure] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
