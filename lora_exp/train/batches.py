"""Batches: sequences end to end, in an order that seed and epoch decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_exp.train.device import moved


@dataclass(frozen=True)
class Batch:
    """Sequences that lie end to end."""

    input_ids: Tensor
    """int64 [tokens]"""
    token_types: Tensor | None
    """int64 [tokens]: first or second text, for models that tell them apart."""
    lengths: list[int]
    """Tokens of each sequence."""
    labels: Tensor
    """[sequences]: int64 class numbers, or float32 values; of text, int64 [targets]: the tokens
    that are to be predicted."""
    reads: Tensor | None = None
    """int64 [targets]: the token in whose place each of them is predicted; None where the model has
    one output for each sequence."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        types, reads = self.token_types, self.reads
        return Batch(
            moved(self.input_ids, device),
            None if types is None else moved(types, device),
            self.lengths,
            moved(self.labels, device),
            None if reads is None else moved(reads, device),
        )


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch (from 0): a function of seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(examples)
