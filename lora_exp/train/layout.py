"""Where the sequences of a flat batch lie, and the groups in which attention takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_exp.train import dropout as dropping
from lora_exp.train.device import moved

SHORTEST = 0.75
"""A group's shortest sequence is at least this share of its longest."""


@dataclass(frozen=True)
class Group:
    """Sequences that attention takes together."""

    run: int
    """Whose they are, or that of the first."""
    number: int
    """Of the group, among those of its run."""
    slots: slice
    sequences: slice
    """In the order of `Arrangement.order`."""
    length: int
    """Slots per sequence: its tokens, then padding up to the longest of the group."""
    mask: Tensor | None
    """bool [sequences, 1, 1, length]: which slots hold a token; None where all do."""


@dataclass(frozen=True)
class Arrangement:
    """Groups of sequences of about equal length, and the slots of their tokens."""

    order: Tensor
    """[sequences]: the sequences as the groups take them."""
    back: Tensor
    """[sequences]: the place of each sequence in `order`."""
    slots: Tensor
    """[slots]: the token in each slot; padding repeats the sequence's own last token."""
    tokens: Tensor
    """[tokens]: the slot of each token."""
    real: Tensor | None
    """bool [slots, 1, 1]: which slots hold a token; None where all do."""
    groups: list[Group]
    _of_heads: dict[tuple[int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def heads(self, number: int, one_each: bool) -> tuple[Tensor, Tensor]:
        """Where the rows [tokens or sequences, heads] go, so that those of a head in a sequence lie
        together, and where they come back from."""
        if (number, one_each) not in self._of_heads:
            there = self.order if one_each else self.slots
            head = torch.arange(number, device=there.device)[None, :, None]
            parts = []
            for group in self.groups:
                span = group.sequences if one_each else group.slots
                count = group.sequences.stop - group.sequences.start
                parts.append((there[span].view(count, 1, -1) * number + head).flatten())
            placed = torch.cat(parts)
            at = torch.arange(len(placed), device=there.device)
            if self.real is not None and not one_each:
                at = at[self.real_rows(number)[:, 0]]
            origin = torch.empty_like(at)
            origin[placed[at]] = at
            self._of_heads[number, one_each] = placed, origin
        return self._of_heads[number, one_each]

    def real_rows(self, heads: int) -> Tensor:
        """bool [slots * heads, 1]: `real`, in the order of `heads`."""
        assert self.real is not None
        parts = []
        for group in self.groups:
            count = group.sequences.stop - group.sequences.start
            real = self.real[group.slots].view(count, 1, -1).expand(-1, heads, -1)
            parts.append(real.reshape(-1, 1))
        return torch.cat(parts)


class Layout:
    """Where the sequences of a flat batch lie.

    Args:
        lengths: tokens of each sequence.
        device: where to.
        runs: number of sequences of each run; None is one run.
        apart: no group has sequences of two runs.

    Attributes:
        spans: where the rows of each run lie, by how many rows there are: tokens or sequences.
        positions: [tokens], each token's place in its sequence, from 0.
        first: [sequences], each sequence's first token.
        last: [sequences], each sequence's last token.
        longest: most tokens of a sequence.
        fronts: by attention module, each run's keys and values [heads, positions, width] in front
            of its sequences (`methods/front.py`); groups are then apart.
        noted: takes keys and values [heads, tokens, width] of every attention module; None if
            nobody asks.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str,
        runs: Sequence[int] | None = None,
        apart: bool = False,
    ) -> None:
        self._device, self._runs, self._apart = device, runs or [len(lengths)], apart
        self._sizes = sizes = np.asarray(lengths)
        self._ends = ends = np.concatenate([[0], np.cumsum(sizes)])
        self.positions = self._tensor(np.arange(ends[-1]) - np.repeat(ends[:-1], sizes))
        self.first = self._tensor(ends[:-1])
        self.last = self._tensor(ends[1:] - 1)
        self.longest = int(sizes.max())
        self.spans = {}
        last = [0, *accumulate(self._runs)]
        for borders in (last, ends[last].tolist()):
            self.spans[borders[-1]] = [slice(*pair) for pair in pairwise(borders)]
        self.fronts: Mapping[nn.Module, Sequence[tuple[Tensor, Tensor]]] = {}
        self.noted: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
        self._lengthened: dict[tuple[int, ...], tuple[Tensor, Layout]] = {}

    def dropping(self) -> AbstractContextManager[Any]:
        """Within this context, dropout knows whose the rows of this layout are."""
        return dropping.drawing(dropping.current().over(self.spans))

    def of_tokens(self, numbers: Sequence[int]) -> Tensor:
        """[tokens]: each one's number, given one for each run."""
        return self._tensor(np.repeat(np.repeat(numbers, self._runs), self._sizes))

    def lengthened(self, by: Sequence[int]) -> tuple[Tensor, Layout]:
        """The layout if each sequence gets rows in front, and for each row its number among those
        rows, one run's after the other's, and after them the tokens.

        Args:
            by: number of rows for each run.
        """
        if (key := tuple(by)) not in self._lengthened:
            more, first = (np.repeat(n, self._runs) for n in (by, np.cumsum(by) - by))
            sizes = self._sizes + more
            ends = np.cumsum(sizes)
            place = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
            token = place + np.repeat(self._ends[:-1] - more + sum(by), sizes)
            index = np.where(place < np.repeat(more, sizes), place + np.repeat(first, sizes), token)
            longer = Layout(sizes.tolist(), self._device, self._runs, self._apart)
            self._lengthened[key] = self._tensor(index), longer
        return self._lengthened[key]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return moved(torch.from_numpy(values), self._device)

    @cached_property
    def ends(self) -> Tensor:
        """int32 [sequences + 1]: where each sequence begins, and where the last one ends."""
        return self._tensor(self._ends.astype(np.int32))

    @cached_property
    def arranged(self) -> Arrangement:
        """The slots for attention."""
        sizes, ends = self._sizes, self._ends
        groups: list[Group] = []
        order: list[np.ndarray] = []
        slots: list[np.ndarray] = []
        reals: list[np.ndarray] = []
        slot = sequence = begin = 0
        for run, count in enumerate(self._runs if self._apart or self.fronts else [len(sizes)]):
            of_run = begin + np.argsort(-sizes[begin : begin + count], kind="stable")
            begin += count
            number = 0
            while len(of_run):
                longest = int(sizes[of_run[0]])
                taken = int((sizes[of_run] >= SHORTEST * longest).sum())
                members, of_run = of_run[:taken], of_run[taken:]
                offsets, own = np.arange(longest)[None, :], sizes[members][:, None]
                real = offsets < own
                # Nothing looks at padding; but 0 times what is not a number is none either, so it
                # must be the sequence's own.
                slots.append((ends[members][:, None] + np.minimum(offsets, own - 1)).reshape(-1))
                reals.append(real.reshape(-1))
                in_slots = slice(slot, slot := slot + real.size)
                in_order = slice(sequence, sequence := sequence + taken)
                mask = None if real.all() else self._tensor(real[:, None, None, :])
                groups.append(Group(run, number, in_slots, in_order, longest, mask))
                order.append(members)
                number += 1
        arranged, is_real, taken_in = map(np.concatenate, (slots, reals, order))
        tokens = np.empty(ends[-1], dtype=np.int64)
        tokens[arranged[is_real]] = np.flatnonzero(is_real)
        return Arrangement(
            order=self._tensor(taken_in),
            back=self._tensor(np.argsort(taken_in)),
            slots=self._tensor(arranged),
            tokens=self._tensor(tokens),
            real=None if is_real.all() else self._tensor(is_real[:, None, None]),
            groups=groups,
        )
