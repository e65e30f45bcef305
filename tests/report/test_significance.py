"""Tests of a difference, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lora_exp.report.significance import bootstrap, mcnemar, paired_t, student_tail, wins


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 20, 31])
@pytest.mark.parametrize("t", [0.0, 0.4, -2.1, 7.5])
def test_the_tail_of_student(t: float, freedom: int) -> None:
    assert student_tail(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-12)


def test_paired_t_over_the_seeds_that_both_have() -> None:
    ours = {1: 0.81, 2: 0.84, 3: 0.86, 4: 0.9, 9: 0.1}
    theirs = {1: 0.80, 2: 0.81, 3: 0.84, 4: 0.87, 8: 0.9}
    expected = stats.ttest_rel([0.81, 0.84, 0.86, 0.9], [0.80, 0.81, 0.84, 0.87]).pvalue
    assert paired_t(ours, theirs) == pytest.approx(expected)
    assert paired_t({1: 0.5}, {1: 0.6}) is None
    assert paired_t({1: 0.5, 2: 0.5}, {3: 0.6, 4: 0.6}) is None


def test_differences_that_are_all_the_same_are_no_proof_of_certainty() -> None:
    ours = {seed: 0.8 + seed / 100 for seed in range(5)}
    assert paired_t(ours, ours) == 1.0
    better = {seed: value + 0.01 for seed, value in ours.items()}
    assert paired_t(better, ours) == 2 / 2**5


def test_who_wins_has_to_be_told_from_all_others() -> None:
    best = {1: 0.90, 2: 0.91, 3: 0.89, 4: 0.92}
    far = {1: 0.80, 2: 0.80, 3: 0.81, 4: 0.80}
    near = {1: 0.90, 2: 0.90, 3: 0.90, 4: 0.90}
    assert wins(best, [far])
    assert not wins(best, [far, near])
    assert not wins(best, [far, {1: 0.1}]), "one seed cannot be tested"
    assert not wins(best, [])


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 5), (10, 3), (0, 6), (300, 250)])
def test_mcnemar_is_the_binomial_test(first: int, second: int) -> None:
    number = first + second
    expected = stats.binomtest(first, number).pvalue if number else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_bootstrap_finds_a_difference_of_means_and_no_other() -> None:
    generator = np.random.default_rng(1)
    gains = generator.normal(0.3, 1.0, 400)

    def measure(drawn: np.ndarray) -> np.ndarray:
        return drawn @ gains / len(gains)

    low, high, p = bootstrap(measure, [1] * len(gains))
    error = gains.std() / 20
    assert low == pytest.approx(gains.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(gains.mean() + 1.96 * error, abs=0.02)
    assert p < 0.01
    gains -= gains.mean()
    assert bootstrap(measure, [1] * len(gains))[2] > 0.5
