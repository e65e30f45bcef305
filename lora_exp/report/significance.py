"""Tests of a difference: over seeds, and over the examples of one split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.05
"""Below it a difference is called significant."""
RESAMPLES = 2000
BOOTSTRAP_SEED = 0
DRAWN = 4_000_000
"""Most numbers of a draw at a time, for memory."""


def paired_t(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """Two-sided p of the paired t-test over the seeds that both have.

    Where all differences are the same the test has no variance to work with; then the p of the
    permutation test that flips their signs: 2 / 2^n, or 1 if nothing differs.

    Args:
        ours: a metric by seed.
        theirs: the same of what it is compared with.

    Returns:
        None for fewer than two seeds.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted({*ours} & {*theirs})]
    number = len(differences)
    if number < 2:
        return None
    mean = math.fsum(differences) / number
    variance = math.fsum((one - mean) ** 2 for one in differences) / (number - 1)
    if math.sqrt(variance) <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if abs(mean) <= 1e-12 else 2.0 / 2**number
    return student_tail(mean / math.sqrt(variance / number), number - 1)


def student_tail(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's distribution (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    return max(0.0, 1.0 - (2 / math.pi * (angle + inside) if odd else inside))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test.

    Args:
        only_first: examples that the first alone has right.
        only_second: and the second alone.
    """
    number = only_first + only_second
    ways = total = 1
    for k in range(1, min(only_first, only_second) + 1):
        ways = ways * (number - k + 1) // k
        total += ways
    return min(1.0, 2 * total / 2**number)


def bootstrap(
    measure: Callable[[NDArray], NDArray], counts: Sequence[int]
) -> tuple[float, float, float]:
    """Paired bootstrap over examples: percentile interval and p of a difference.

    Args:
        measure: from how often each kind of example is drawn, [resamples, kinds], to the
            difference of the two runs in each resample, [resamples].
        counts: how many examples of each kind there are.

    Returns:
        The 2.5th and the 97.5th percentile, and p: twice the smaller share of resamples on either
        side of no difference.
    """
    import numpy as np

    generator = np.random.default_rng(BOOTSTRAP_SEED)
    total = sum(counts)
    shares = np.asarray(counts) / total
    at_once = max(1, DRAWN // len(counts))
    differences = np.concatenate(
        [
            measure(generator.multinomial(total, shares, min(at_once, RESAMPLES - start)))
            for start in range(0, RESAMPLES, at_once)
        ]
    )
    low, high = np.percentile(differences, (2.5, 97.5))
    beyond = min(np.mean(differences <= 0), np.mean(differences >= 0))
    return float(low), float(high), min(1.0, 2 * max(float(beyond), 1 / RESAMPLES))


def told(p: float | None) -> str:
    """`p = 0.031`, `p < 0.001`, or that there are too few to test."""
    if p is None:
        return "too few to test"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def wins(best: Mapping[int, float], others: Sequence[Mapping[int, float]]) -> bool:
    """Whether the paired t-test tells the best from each of the others."""
    tested = [paired_t(best, other) for other in others]
    return bool(tested) and all(p is not None and p < LEVEL for p in tested)
