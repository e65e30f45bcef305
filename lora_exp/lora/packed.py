"""Adapters trained together: each has tokens of its own, which lie together in the batch.

The frozen weight is multiplied with all tokens at once, each adapter's factors with its own tokens:

    tokens   |---- adapter 0 ----|-- adapter 1 --|------ adapter 2 ------|
    W x      ============================================================
    + s B A x  s0 B0 A0            s1 B1 A1        s2 B2 A2

Nothing of one adapter reaches the tokens of another, neither forward nor backward: not even what is
not a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_exp.lora.base import LoraLayer
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.linear import Linear

Mask = Callable[[str, int, Tensor, float], Tensor]
"""(layer's name, adapter's number, its input, probability) -> what the input is multiplied with."""


@contextmanager
def packed(
    adapters: Sequence[Mapping[str, LoraLayer]], spans: Mapping[int, Sequence[slice]], mask: Mask
) -> Iterator[None]:
    """Within this context, the layers of the first adapter's model run all adapters.

    Args:
        adapters: the layers of each, by name, in models of the same frozen weights.
        spans: where the rows of each adapter lie, by how many rows an input has: its last dimension
            but one (numbers of tokens: the last).
        mask: of dropout, for the layers that have any.
    """
    rows = _Packed(adapters, spans, mask)
    before = {layer: layer.rows for layer in adapters[0].values()}
    for layer in before:
        layer.rows = rows
    try:
        yield
    finally:
        for layer, outer in before.items():
            layer.rows = outer


class _Packed:
    def __init__(
        self,
        adapters: Sequence[Mapping[str, LoraLayer]],
        spans: Mapping[int, Sequence[slice]],
        mask: Mask,
    ) -> None:
        self.adapters, self.spans, self.mask = adapters, spans, mask
        self.names = {layer: name for name, layer in adapters[0].items()}

    def forward(self, layer: LoraLayer, input: Tensor) -> Tensor:
        """The layer's output, each adapter's rows with its own update."""
        name = self.names[layer]
        layers = [adapter[name] for adapter in self.adapters]
        if not isinstance(layer, Linear) or isinstance(layer, DoraLinear):
            return self._one_by_one(layers, input)
        rows = input.reshape(-1, layer.in_features)
        spans = self.spans[len(rows)]
        masks, factors = [], []
        for number, (one, span) in enumerate(zip(layers, spans, strict=True)):
            assert isinstance(one, Linear)
            probability = one.lora_dropout.p if one.training else 0.0
            masks.append(self.mask(name, number, rows[span], probability) if probability else None)
            factors += one.dense(one.lora_A, one.lora_B)
        weight = layer.base_weight.T if layer.fan_in_fan_out else layer.base_weight
        scalings = [one.scaling for one in layers]
        output = _LowRank.apply(rows, weight, layer.bias, spans, scalings, masks, *factors)
        return output.view(*input.shape[:-1], layer.out_features)

    def _one_by_one(self, layers: Sequence[LoraLayer], input: Tensor) -> Tensor:
        """For layers without a form of their own here: numbers or rows in, rows out."""
        plain = layers[0]._plain(input, layers[0].base_weight)
        dimension = plain.ndim - 2
        spans = self.spans[plain.shape[dimension]]
        sizes = [span.stop - span.start for span in spans]
        parts = zip(
            layers, plain.split(sizes, dimension), input.split(sizes, dimension), strict=True
        )
        updated = [
            one.add_update(output, some, one.lora_A, one.lora_B, one.scaling)
            for one, output, some in parts
        ]
        return torch.cat(updated, dimension)


class _LowRank(torch.autograd.Function):
    """x W^T + b, and to each span of rows s (x A^T) B^T; W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spans: Sequence[slice],
        scalings: Sequence[float],
        masks: Sequence[Tensor | None],
        *factors: Tensor,
    ) -> Tensor:
        kind = rows.device.type
        ctx.given = rows.dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        with torch.autocast(kind, enabled=False):
            rows, weight = rows.to(dtype), weight.to(dtype)
            output = F.linear(rows, weight, None if bias is None else bias.to(dtype))
            lows = []
            for number, span in enumerate(spans):
                a, b = (factor.to(dtype) for factor in factors[2 * number : 2 * number + 2])
                low = _dropped(rows[span], masks[number]) @ a.T
                output[span].addmm_(low, b.T, alpha=scalings[number])
                lows.append(low)
        ctx.spans, ctx.scalings, ctx.masked = spans, scalings, [m is not None for m in masks]
        kept = [mask for mask in masks if mask is not None]
        ctx.save_for_backward(rows, weight, *lows, *factors, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        count = len(ctx.spans)
        rows, weight, *saved = ctx.saved_tensors
        lows, factors, kept = saved[:count], saved[count : 3 * count], iter(saved[3 * count :])
        gradient = gradients[0].to(rows.dtype)
        of_rows = gradient @ weight if ctx.needs_input_grad[0] else None
        of_factors: list[Tensor | None] = []
        for number, span in enumerate(ctx.spans):
            a, b = factors[2 * number : 2 * number + 2]
            mask = next(kept) if ctx.masked[number] else None
            own = gradient[span]
            of_low = (own @ b.to(own.dtype)).mul_(ctx.scalings[number])
            of_factors.append((of_low.T @ _dropped(rows[span], mask)).to(a.dtype))
            of_factors.append((own.T @ lows[number]).mul_(ctx.scalings[number]).to(b.dtype))
            if of_rows is None:
                continue
            if mask is None:
                of_rows[span].addmm_(of_low, a.to(own.dtype))
            else:
                of_rows[span].addcmul_(of_low @ a.to(own.dtype), mask)
        return (
            None if of_rows is None else of_rows.to(ctx.given),
            *(None,) * 5,
            *of_factors,
        )


def _dropped(rows: Tensor, mask: Tensor | None) -> Tensor:
    return rows if mask is None else rows * mask
