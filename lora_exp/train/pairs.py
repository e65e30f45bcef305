"""Text generation in tokens: what is read, the end token, and what is to be written.

    <context> <eos> <" " + text> <eos>
                    `--- the loss ---'

as microsoft/LoRA's examples/NLG/src/gpt2_encode.py and data_utils.py have it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_exp.errors import UserError
from lora_exp.train.batches import Batch
from lora_exp.train.encoding import CHUNK, Sequences, Tokens, kept, text_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_exp.tasks import Pair

FORMAT = "pairs 1"
"""Of how pairs become tokens here: a change needs another name."""

log = logging.getLogger("lora_exp")


@dataclass(frozen=True)
class EncodedPairs(Sequences):
    """Texts to be written; `types` is 1 for their tokens and 0 for those that are only read."""

    @cached_property
    def weights(self) -> np.ndarray:
        """Each counts by the tokens to be written."""
        assert self.types is not None
        before = np.concatenate([[0], np.cumsum(self.types, dtype=np.int64)])
        return before[self.offsets[1:]] - before[self.offsets[:-1]]

    def batch(self, indices: Sequence[int]) -> Batch:
        """A batch whose labels are the tokens to be written, each read off at the one before."""
        ids, types, lengths = self.gather(indices)
        assert types is not None
        (written,) = torch.nonzero(types, as_tuple=True)  # never the first token of a sequence
        return Batch(ids, None, lengths, labels=ids[written], reads=written - 1)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int,
    cache: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> EncodedPairs:
    """Tokenise a split; arguments as those of `lora_exp.train.encoding.encode`.

    Of each example the first `max_length` tokens are kept; one that is cut before its text begins
    stays, and has no part in the loss.

    Raises:
        CancelledError: once `cancelled` says so.
        UserError: if nothing to be written is left in any example.
    """

    def tokenise() -> Tokens:
        return _tokenise(tokenizer, pairs, max_length, cancelled)

    texts = [(pair.source, pair.target) for pair in pairs]
    key = None if cache is None else text_key(tokenizer, texts, [FORMAT, max_length])
    encoded = EncodedPairs(*kept(cache, key, tokenise))
    lost = int((encoded.weights == 0).sum())
    if lost == len(encoded):
        raise UserError(
            f"train.max_length={max_length}: every example is cut before the text that is to be "
            f"written; the sources alone have {int(encoded.lengths.min())} tokens or more. Give a "
            "larger one."
        )
    if lost:
        log.warning(
            "train.max_length=%d: %d of %d examples are cut before the text that is to be written.",
            max_length,
            lost,
            len(encoded),
        )
    return encoded


def encode_sources(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """What the model reads before it writes: the context and the end token."""
    end = _end(tokenizer)
    return [[*context, end] for context in _contexts(tokenizer, texts)]


def _contexts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each, behind the model's begin token where its tokenizer puts one (Llama's)."""
    first = _with_specials(tokenizer, "a")[:1]
    start = first if first == [tokenizer.bos_token_id] else []
    return [[*start, *context] for context in _plain(tokenizer, texts)]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    assert isinstance(end, int), "models.end_of_text has not been asked"
    return end


def _with_specials(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    return encoded["input_ids"]


def _tokenise(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int,
    cancelled: Callable[[], bool],
) -> Tokens:
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths = [0]
    end = _end(tokenizer)
    for start in range(0, len(pairs), CHUNK):
        if cancelled():
            raise CancelledError
        some = pairs[start : start + CHUNK]
        read = encode_sources(tokenizer, [pair.source for pair in some])
        texts = _plain(tokenizer, [f" {pair.target}" for pair in some])
        whole, kinds = [], []
        for source, text in zip(read, texts, strict=True):
            whole.append([*source, *text, end][:max_length])
            kinds.append([*[0] * len(source), *[1] * len(text), 1][:max_length])
        lengths += map(len, whole)
        ids.append(np.fromiter(chain.from_iterable(whole), np.int32))
        types.append(np.fromiter(chain.from_iterable(kinds), np.uint8))
    return Tokens(np.concatenate(ids), np.concatenate(types), np.cumsum(lengths, dtype=np.int64))
