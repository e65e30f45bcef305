"""Linear layers: one weight, or several projections fused into one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_exp.lora.base import Factors, LoraLayer, autocasts


class Linear(LoraLayer, nn.Linear):
    """`torch.nn.Linear` with a low-rank update over the whole output.

    lora_A is [r, in], lora_B is [out, r].

    Args:
        in_features: width of the input.
        out_features: width of the output.
        r: rank; 0 is the plain layer.
        lora_alpha: numerator of the scaling alpha / r.
        lora_dropout: dropout on the input of A.
        fan_in_fan_out: the weight is stored as [in, out] (Conv1D of GPT-2) instead of [out, in].
        merge_weights: `eval()` merges the update into the weight, `train()` takes it out.
        kwargs: `bias`, `device` and `dtype` of `torch.nn.Linear`.
    """

    fan_in_fan_out = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_features, out_features, **kwargs)
        self._transpose(fan_in_fan_out)
        self._adapt(r, lora_alpha, lora_dropout, merge_weights)

    def _transpose(self, fan_in_fan_out: bool) -> None:
        self.fan_in_fan_out = fan_in_fan_out
        if fan_in_fan_out:
            self.weight.data = self.weight.data.T

    def _reset_plain(self) -> None:
        self._transpose(self.fan_in_fan_out)  # the bounds of initial values depend on the inputs
        super()._reset_plain()
        self._transpose(self.fan_in_fan_out)

    def _take_over(self, module: nn.Module) -> None:
        self.fan_in_fan_out = is_transposed(module)
        rows, columns = self.weight.shape
        self.in_features, self.out_features = columns, rows
        if self.fan_in_fan_out:
            self.in_features, self.out_features = rows, columns

    def factor_shapes(self) -> tuple[Sequence[int], Sequence[int]]:
        """[r, in] and [out, r]."""
        return (self.r, self.in_features), (self.out_features, self.r)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """B A: [out, in], or [in, out] if fan_in_fan_out."""
        a, b = self.dense(a, b)
        return a.T @ b.T if self.fan_in_fan_out else b @ a

    def add_update(
        self, plain: Tensor, input: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """[..., out] and [..., in] -> [..., out]"""
        a, b = self.dense(a, b)
        low = F.linear(self._for_update(input, a), a)
        return add_low_rank(plain, low, b, scaling)

    def _for_update(self, input: Tensor, a: Tensor) -> Tensor:
        """What A is multiplied with: dropped, in A's dtype where autocast does not see to it."""
        if not autocasts(input):
            input = input.to(a.dtype)
        return self.lora_dropout(input)

    def _plain(self, input: Tensor, weight: Tensor) -> Tensor:
        return F.linear(input, weight.T if self.fan_in_fan_out else weight, self.bias)


class MergedLinear(Linear):
    """A fused projection (query, key and value in one) with an update for some of its slices.

    lora_A is [sum of ranks, in]: a block of rows for each enabled slice; lora_B is [sum of enabled
    widths, highest rank]: a block of rows for each. A slice of lower rank uses the first columns of
    its block, and alpha is divided by its own rank.

    Args:
        r: rank of every slice, or one for each slice (0 where none is wanted).
        enable_lora: for each slice of the output, whether it gets an update.
        slice_widths: outputs of each slice; None is equal slices. With grouped-query attention, key
            and value are narrower than query.

    The other arguments are those of `Linear`.

    Raises:
        ValueError: if the slices do not make up the output.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int | Sequence[int] = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,),
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        slice_widths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        self._transpose(fan_in_fan_out)
        self._adapt(
            r,
            lora_alpha,
            lora_dropout,
            merge_weights,
            enable_lora=enable_lora,
            slice_widths=slice_widths,
        )

    def _adapt(
        self,
        r: int | Sequence[int],
        *args: Any,
        enable_lora: Sequence[bool],
        slice_widths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        slices, out = len(enable_lora), self.out_features
        if slice_widths is None and out % slices:
            raise ValueError(f"{out} outputs do not divide into {slices} equal slices")
        widths = tuple(slice_widths or [out // slices] * slices)
        if len(widths) != slices or sum(widths) != out:
            raise ValueError(f"slices of {widths} outputs are not {slices} that make up {out}")
        ranks = list(r) if isinstance(r, Sequence) else [r] * slices
        if len(ranks) != slices:
            raise ValueError(f"r={r}: give one rank, or one for each of the {slices} slices")
        ranks = [rank if on else 0 for rank, on in zip(ranks, enable_lora, strict=True)]
        self.slice_widths = widths
        self.enable_lora = tuple(rank > 0 for rank in ranks)
        self.ranks = tuple(rank for rank in ranks if rank)
        super()._adapt(ranks, *args, **kwargs)

    @property
    def enabled_slices(self) -> list[slice]:
        """The outputs of each slice that gets an update."""
        ends = accumulate(self.slice_widths)
        parts = zip(ends, self.slice_widths, self.enable_lora, strict=True)
        return [slice(end - width, end) for end, width, on in parts if on]

    def factor_shapes(self) -> tuple[Sequence[int], Sequence[int]]:
        """[sum of ranks, in] and [sum of enabled widths, highest rank]."""
        rows = sum(part.stop - part.start for part in self.enabled_slices)
        return (sum(self.ranks), self.in_features), (rows, self.r)

    def blocks(self, a: Tensor, b: Tensor) -> list[Factors]:
        """A_i [r_i, in] and B_i [width_i, r_i] of each enabled slice; the ranks of the slices are
        to each other as in the layer."""
        total, own = a.shape[0], sum(self.ranks)
        if any(rank * total % own for rank in self.ranks):
            raise ValueError(f"{total} rows of A do not divide as the ranks {self.ranks} do")
        ranks = [rank * total // own for rank in self.ranks]
        rows = b.split([part.stop - part.start for part in self.enabled_slices])
        both = zip(a.split(ranks), rows, ranks, strict=True)
        return [(block, outputs[:, :rank]) for block, outputs, rank in both]

    def assemble(self, blocks: Sequence[Factors]) -> Factors:
        """The inverse of `blocks`."""
        width = max(b.shape[1] for _, b in blocks)
        padded = [F.pad(b, (0, width - b.shape[1])) for _, b in blocks]
        return torch.cat([a for a, _ in blocks]), torch.cat(padded)

    def dense(self, a: Tensor, b: Tensor) -> Factors:
        """A [R, in] and B [out, R]: the slices are blocks of B, zero elsewhere."""
        parts, left, total = [], 0, a.shape[0]
        blocks = iter(zip(self.blocks(a, b), self._relative_scales(), strict=True))
        for width, enabled in zip(self.slice_widths, self.enable_lora, strict=True):
            if not enabled:
                parts.append(b.new_zeros(width, total))
                continue
            (_, block), scale = next(blocks)
            rank = block.shape[1]
            block = block if scale == 1 else block * scale
            parts.append(F.pad(block, (left, total - left - rank)))
            left += rank
        return a, torch.cat(parts)

    def from_dense(self, a: Tensor, b: Tensor) -> Factors:
        """The inverse of `dense`.

        Raises:
            ValueError: if B has other values than zero outside of the blocks.
        """
        if tuple(b.shape) != (self.out_features, a.shape[0]):
            return a, b
        empty = b.new_zeros(self.factor_shapes()[1][0], a.shape[0])
        ranks = [block.shape[0] for block, _ in self.blocks(a, empty)]
        found, left = [], 0
        rest = b.clone()
        for part, rank, scale in zip(
            self.enabled_slices, ranks, self._relative_scales(), strict=True
        ):
            columns = slice(left, left + rank)
            found.append((a[columns], b[part, columns] / scale))
            rest[part, columns] = 0
            left += rank
        if rest.any():
            raise ValueError("the update is not one of these slices alone")
        return self.assemble(found)

    def _relative_scales(self) -> list[float]:
        """Of each enabled slice: its scaling, which has its own rank below, over the layer's."""
        power = 0.5 if self.rslora else 1.0
        return [(self.r / rank) ** power for rank in self.ranks]


def is_transposed(module: nn.Module) -> bool:
    """Whether a module stores its weight as [in, out]: the Conv1D of transformers' GPT-2.

    Known by its name, so that a library for any PyTorch model need not import transformers.
    """
    return type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor)


def add_low_rank(plain: Tensor, low: Tensor, b: Tensor, scaling: float) -> Tensor:
    """plain [..., out] + scaling * low [..., R] @ b.T [R, out], in one pass over the output."""
    if not (plain.dtype == low.dtype == b.dtype) and not autocasts(low):
        return (plain + F.linear(low * scaling, b)).to(plain.dtype)
    rows = plain.reshape(-1, plain.shape[-1])
    low = low.reshape(-1, low.shape[-1])
    return torch.addmm(rows, low, b.T, alpha=scaling).view(plain.shape)
