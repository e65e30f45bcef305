"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Where a run stands; with the parameters and moments, all that an exact resume needs.

    Data order and dropout are functions of seed and step, so there are no generators to keep.
    """

    step: int = 0
    """Updates made."""
    evaluated: int = 0
    """The step of the last evaluation."""
    losses: list[float] = field(default_factory=list)
    """Of the updates since the last line of training metrics."""
    gradient_norm: float = 0.0
    """Of the last update, before clipping."""
    best: dict[str, Any] | None = None
    """`step`, `epoch` and `metrics` of the best evaluation so far."""
    last: dict[str, float] | None = None
    """Metrics of the last evaluation."""
    metrics_size: int = 0
    """Bytes of metrics.jsonl."""
    tokens: int = 0
    train_seconds: float = 0.0
    decoded: int = 0
    """Sources for which texts were generated in `decoding_seconds`. A killed attempt leaves its
    texts, and nothing here."""
    decoding_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory: int = 0
    micro_batch_size: int | None = None
    """Sequences per forward pass, where memory did not suffice for as many as were asked for."""
    together: str | None = None
    """The same in the checkpoints that a pack's runs write at the same moment."""
