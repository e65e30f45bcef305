"""Dropout that is a function of a run's seed, its step and the place in the model, and of nothing
else: not of what is trained beside it, of what was drawn before, or of how often it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn


class Draws:
    """Which units are dropped in one pass through the model.

    Args:
        streams: a number for each run in the pass, made of its seed and step (below 2^63).
        spans: where the rows of each run lie, by how many rows a tensor has (its last dimension but
            one); None where all rows are the only run's.
    """

    def __init__(
        self, streams: Sequence[int], spans: Mapping[int, Sequence[slice]] | None = None
    ) -> None:
        self.streams, self.spans = streams, spans

    def only(self, number: int) -> Draws:
        """Those of one run, for its own head."""
        return Draws([self.streams[number]])

    def over(self, spans: Mapping[int, Sequence[slice]]) -> Draws:
        """The same where the rows of the runs lie elsewhere."""
        return self if self.spans is None else Draws(self.streams, spans)

    def seed(self, number: int, place: int) -> int:
        """The seed of a run's random numbers at a place in the model."""
        return (self.streams[number] + place * 0x9E3779B97F4A7C15) % 2**63

    def mask(self, number: int, place: int, like: Tensor, probability: float) -> Tensor:
        """0 or 1 / (1 - probability) for each unit of a run's tensor."""
        return self._mask(like, [(like.numel(), self.seed(number, place))], probability)

    def masks(self, place: int, like: Tensor, probability: float) -> Tensor:
        """The same for a tensor with the rows of every run."""
        if self.spans is None:
            return self.mask(0, place, like, probability)
        width = like.shape[-1]
        parts = [
            ((span.stop - span.start) * width, self.seed(number, place))
            for number, span in enumerate(self.spans[like.numel() // width])
        ]
        return self._mask(like, parts, probability)

    def _mask(self, like: Tensor, parts: Sequence[tuple[int, int]], probability: float) -> Tensor:
        """Parts: number of units and seed, one after the other."""
        if like.device.type == "cpu":
            drawn = [_sixteen_bits(*part) for part in parts]
            bits = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
            dropped = min(round(probability * 2**16), 2**16 - 1)
            kept = bits >= dropped - 2**15
            return _times(kept, 2**16 / (2**16 - dropped), like.dtype).view(like.shape)
        mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        sizes, seeds = zip(*parts, strict=True)
        for units, seed in zip(mask.view(-1).split(sizes), seeds, strict=True):
            generator = torch.Generator(like.device).manual_seed(seed)
            units.bernoulli_(1 - probability, generator=generator)
        return mask.div_(1 - probability)


def _sixteen_bits(number: int, seed: int) -> np.ndarray:
    """int16 [number]: several times as fast as torch's own random numbers are on a CPU."""
    words = np.random.SFC64(seed).random_raw(-(-number // 4))
    return words.view(np.int16)[:number]


def _times(kept: np.ndarray, factor: float, dtype: torch.dtype) -> Tensor:
    """[units]: the factor where bool `kept` holds, else 0; numpy is several times as fast here."""
    if dtype == torch.bfloat16:  # numpy has no such numbers, but their bits
        bits = torch.tensor(factor, dtype=dtype).view(torch.int16).numpy()
        return torch.from_numpy(np.multiply(kept, bits)).view(dtype)
    return torch.from_numpy(np.multiply(kept, np.float32(factor))).to(dtype)


_current: Draws | None = None


@contextmanager
def drawing(draws: Draws) -> Iterator[Draws]:
    """Within this context, dropout draws these."""
    global _current  # backward passes on a GPU, in a thread of their own, see it as well
    outer, _current = _current, draws
    try:
        yield draws
    finally:
        _current = outer


def again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For gradient checkpointing: what is computed again draws what it drew at first."""
    return nullcontext(), drawing(current())


def current() -> Draws:
    """What dropout draws at present."""
    assert _current is not None, "outside of a pass"
    return _current


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws from the current `Draws`."""

    dropout_place = 0

    def forward(self, input: Tensor) -> Tensor:
        """The input, in training with some units dropped."""
        if not self.training or self.p == 0:
            return input
        return input * current().masks(self.dropout_place, input, self.p)


def place_of(name: str) -> int:
    """The number of a place in the model, by its name."""
    return crc32(name.encode())


def give_places(model: nn.Module) -> None:
    """Put `Dropout` in the place of every `nn.Dropout`, and tell each module its place."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            parent, _, last = name.rpartition(".")
            module = Dropout(module.p).train(module.training)
            setattr(model.get_submodule(parent), last, module)
        module.dropout_place = place_of(name)  # pyright: ignore[reportArgumentType]
