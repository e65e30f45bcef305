"""From texts to batches: tokenised once, ordered by seed and epoch, sequences end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_exp.tasks import Examples


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
    """[sequences]: int64 class numbers, or float32 values."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        types = self.token_types
        return Batch(
            self.input_ids.to(device),
            None if types is None else types.to(device),
            self.lengths,
            self.labels.to(device),
        )


@dataclass(frozen=True)
class Encoded:
    """A tokenised split."""

    ids: list[np.ndarray]
    """int64 [length] per example."""
    types: list[np.ndarray] | None
    """As `ids`; None where the model knows no token types."""
    labels: np.ndarray
    """[examples]: int64 or float32."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples with these numbers, in this order."""

        def join(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate([parts[i] for i in indices]))

        return Batch(
            input_ids=join(self.ids),
            token_types=None if self.types is None else join(self.types),
            lengths=[len(self.ids[i]) for i in indices],
            labels=torch.from_numpy(self.labels[list(indices)]),
        )

    def by_length(self, tokens: int) -> Iterator[Sequence[int]]:
        """The examples' numbers in batches of similar length and at most `tokens` tokens, for
        evaluation: each example once, a single longer one alone."""
        order = np.argsort([-len(ids) for ids in self.ids], kind="stable").tolist()
        while order:
            size = max(1, tokens // len(self.ids[order[0]]))
            yield order[:size]
            del order[:size]


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> Encoded:
    """Tokenise a split; texts over `max_length` tokens are cut, the longer one of a pair first."""
    ids: list[np.ndarray] = []
    types: list[np.ndarray] | None = [] if "token_type_ids" in tokenizer.model_input_names else None
    for start in range(0, len(examples), 10_000):  # the tokenizer's own objects are large
        some = examples.texts[start : start + 10_000]
        first = [texts[0] for texts in some]
        second = [texts[1] for texts in some] if len(some[0]) > 1 else None
        if second and tokenizer.num_special_tokens_to_add(pair=True) == 0:
            # GPT-2's tokenizer puts nothing between two texts.
            border = str(tokenizer.eos_token)
            first = [border.join(pair) for pair in zip(first, second, strict=True)]
            second = None
        encoded = tokenizer(
            first,
            second,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )
        ids += [np.asarray(one, dtype=np.int64) for one in encoded["input_ids"]]
        if types is not None:
            types += [np.asarray(one, dtype=np.int64) for one in encoded["token_type_ids"]]
    kind = np.float32 if isinstance(examples.labels[0], float) else np.int64
    return Encoded(ids, types, np.asarray(examples.labels, dtype=kind))


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch (from 0): a function of seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(examples)
