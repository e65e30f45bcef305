"""How a metric is written for people: scaled, rounded, and which direction is better."""

from __future__ import annotations

LOWER_IS_BETTER = ("loss", "perplexity", "ter")
PERCENT = (
    "accuracy",
    "f1",
    "matthews_correlation",
    "pearson",
    "spearman",
    "bleu",
    "meteor",
    "rouge_l",
    "chrf++",
    "ter",
)
"""Kept as fractions, told in percent."""
DECIMALS = 2


def base(metric: str) -> str:
    """`bleu` of `bleu_unseen`, `accuracy` of `accuracy_mismatched`."""
    known = (*PERCENT, *LOWER_IS_BETTER)
    return next((one for one in known if metric == one or metric.startswith(f"{one}_")), metric)


def in_percent(metric: str) -> bool:
    """It is a fraction that is told in percent."""
    return base(metric) in PERCENT


def scale(metric: str) -> float:
    """By what a value is multiplied before it is told."""
    return 100.0 if in_percent(metric) else 1.0


def lower_is_better(metric: str) -> bool:
    """Less of it is better."""
    return base(metric) in LOWER_IS_BETTER


def millions(parameters: float) -> str:
    """A number of parameters as the published tables have it: `0.35M`; few are counted."""
    return f"{parameters / 1e6:.2f}M" if parameters >= 1e5 else f"{parameters:,.0f}"
