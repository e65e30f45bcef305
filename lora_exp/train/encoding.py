"""From texts to numbers: tokenised once, then found on disk by content."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as once
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lora_exp.runs import files
from lora_exp.train.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_exp.tasks import Examples

FORMAT = 1
"""Of the entries and of how texts become tokens here: a change of either needs another number."""

CHECKSUM = hashlib.sha256().digest_size
CHUNK = 10_000  # examples at a time: the tokenizer's own objects are large

log = logging.getLogger("lora_exp")


@dataclass(frozen=True)
class Sequences:
    """A tokenised split: all sequences end to end, and where each begins."""

    ids: np.ndarray
    """int32 [tokens]; may be a read-only map of a file."""
    types: np.ndarray | None
    """uint8 [tokens]: first or second text; None where that makes no difference."""
    offsets: np.ndarray
    """int64 [examples + 1]: example i is ids[offsets[i]:offsets[i + 1]]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [examples]: tokens of each."""
        return np.diff(self.offsets)

    @cached_property
    def weights(self) -> np.ndarray:
        """int64 [examples]: how much each counts in the mean loss of a batch."""
        raise NotImplementedError

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples with these numbers, in this order, copied to tensors of their own."""
        raise NotImplementedError

    def gather(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None, list[int]]:
        """Their tokens and token types (int64 [tokens]), and the number of tokens of each."""
        chosen = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts
        ends = np.cumsum(lengths)
        # Token by token: its place in the batch, and how far its sequence lies from there.
        places = np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)

        def take(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.take(places).astype(np.int64))

        types = None if self.types is None else take(self.types)
        return take(self.ids), types, lengths.tolist()

    def by_length(self, tokens: int) -> Iterator[Sequence[int]]:
        """The examples' numbers in batches of similar length and at most `tokens` tokens, for
        evaluation: each example once, a single longer one alone."""
        order = np.argsort(-self.lengths, kind="stable")
        start = 0
        while start < len(order):
            longest = max(1, int(self.lengths[order[start]]))
            size = max(1, tokens // longest)
            yield order[start : start + size].tolist()
            start += size


@dataclass(frozen=True)
class Encoded(Sequences):
    """Texts with labels."""

    labels: np.ndarray
    """[examples]: int64 or float32."""

    @cached_property
    def weights(self) -> np.ndarray:
        """Each counts the same."""
        return np.ones(len(self), np.int64)

    def batch(self, indices: Sequence[int]) -> Batch:
        """A batch with labels."""
        labels = self.labels[np.asarray(indices, dtype=np.int64)]
        return Batch(*self.gather(indices), torch.from_numpy(labels))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
    cache: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Encoded:
    """Tokenise a split; texts over `max_length` tokens are cut, the longer one of a pair first.

    Args:
        tokenizer: of the backbone.
        examples: at least one; all with one text, or all with two.
        max_length: tokens of an example at most, special ones included.
        cache: the folder where tokens are kept, under a hash of all that decides them, and found
            again; any number of processes may share it. What is damaged there is made anew, and a
            folder that cannot be written costs a warning: the result is the same in every bit.
        cancelled: asked now and then.

    Raises:
        CancelledError: once it says so.
    """
    kind = np.float32 if isinstance(examples.labels[0], float) else np.int64
    labels = np.asarray(examples.labels, dtype=kind)

    def tokenise() -> Tokens:
        return _tokenise(tokenizer, examples, max_length, cancelled)

    key = None if cache is None else text_key(tokenizer, examples.texts, [FORMAT, max_length])
    return Encoded(*kept(cache, key, tokenise), labels)


def kept(cache: Path | None, key: str | None, tokenise: Callable[[], Tokens]) -> Tokens:
    """The entry of the cache, made if there is none."""
    if cache is None or key is None:
        return tokenise()
    tokens = _read(cache / key)
    if tokens is None:
        tokens = tokenise()
        _write(cache / key, tokens)
    return tokens


class Tokens(NamedTuple):
    """What of a split depends on the texts alone, as in `Sequences`."""

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray


def _tokenise(
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
    cancelled: Callable[[], bool],
) -> Tokens:
    ids: list[np.ndarray] = []
    types: list[np.ndarray] | None = [] if "token_type_ids" in tokenizer.model_input_names else None
    lengths = [0]
    for start in range(0, len(examples), CHUNK):
        if cancelled():
            raise CancelledError
        some = examples.texts[start : start + CHUNK]
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
        lengths += map(len, encoded["input_ids"])
        ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32))
        if types is not None:
            types.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.uint8))
    return Tokens(
        np.concatenate(ids),
        None if types is None else np.concatenate(types),
        np.cumsum(lengths, dtype=np.int64),
    )


# -- entries of the cache: a checksum, three counts, offsets, ids and, if there are any, types -----


def text_key(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]], options: list[Any]
) -> str | None:
    """A hash of all that decides the tokens; None where the tokenizer does not tell what it is.

    Args:
        tokenizer: that makes them.
        texts: of each example.
        options: what else decides, as JSON can hold it.
    """
    try:
        state = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    except Exception:  # a slow tokenizer has no backend, and one with a part in Python no text
        return None
    state.update(truncation=None, padding=None)  # of the last call; each call sets its own
    kind = type(tokenizer)
    decisive = [
        *options,
        version("tokenizers"),
        version("transformers"),
        f"{kind.__module__}.{kind.__qualname__}",
        tokenizer.model_input_names,
        tokenizer.truncation_side,
        tokenizer.split_special_tokens,
        str(tokenizer.eos_token),
        state,
        len(texts),
    ]
    digest = hashlib.sha256(json.dumps(decisive).encode())
    for start in range(0, len(texts), CHUNK):
        some = texts[start : start + CHUNK]
        each = list(chain.from_iterable(some))
        # The numbers of texts and of characters make the one long text unambiguous.
        digest.update(np.fromiter(map(len, some), np.int64).tobytes())
        digest.update(np.fromiter(map(len, each), np.int64).tobytes())
        digest.update("".join(each).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(entry: Path) -> Tokens | None:
    """The entry, mapped; None where there is none, or not a whole one."""
    try:
        with entry.open("rb") as file:
            checksum = file.read(CHECKSUM)
            # Read rather than mapped: a failing disk then raises an error that can be caught.
            content = hashlib.file_digest(file, lambda: hashlib.sha256(entry.name.encode()))
            if content.digest() != checksum:
                log.warning("%s is damaged and made anew.", entry)
                return None
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # usually there is none; if something is wrong, `_write` will say so
        return None
    place = CHECKSUM
    counts = np.frombuffer(data, np.int64, 3, place)
    examples, tokens, typed = counts.tolist()
    place += counts.nbytes
    offsets = np.frombuffer(data, np.int64, examples + 1, place)
    place += offsets.nbytes
    ids = np.frombuffer(data, np.int32, tokens, place)
    place += ids.nbytes
    return Tokens(ids, np.frombuffer(data, np.uint8, tokens, place) if typed else None, offsets)


def _write(entry: Path, tokens: Tokens) -> None:
    """Put the entry in place as a whole, or warn."""
    ids, types, offsets = tokens
    counts = np.array([len(offsets) - 1, len(ids), types is not None], dtype=np.int64)
    parts = [part.data for part in (counts, offsets, ids, types) if part is not None]
    digest = hashlib.sha256(entry.name.encode())  # so that no entry passes for another
    for part in parts:
        digest.update(part)
    # Another process, on another machine even, may be writing the same entry, or have been killed
    # while it did: the bytes are the same, so that each may write over the other's.
    temporary = entry.with_name(entry.name + files.TEMPORARY)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        with temporary.open("r+b") as file:
            file.writelines([digest.digest(), *parts])
            file.truncate()
        files.commit(temporary, entry)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and entry.exists():
            return  # the other one was quicker
        _cannot_keep(entry.parent, error.strerror or str(error))
        with suppress(OSError):
            temporary.unlink()


@once  # the other splits, and the other runs of a sweep, would only say it again
def _cannot_keep(folder: Path, reason: str) -> None:
    log.warning("%s: tokens cannot be kept there (%s); the run goes on without.", folder, reason)
