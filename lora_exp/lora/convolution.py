"""Convolutions over one, two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from lora_exp.lora.base import Factors, LoraLayer


class Convolution(LoraLayer):
    """A convolution with a low-rank update of its kernel.

    With s the kernel's first extent and q the product of the others, lora_A is [r s, in q] and
    lora_B is [out / groups s, r s]; their product has as many values as the kernel [out, in /
    groups, ...] and is read as one. For square kernels over two dimensions these are loralib's
    shapes; others and their stride, padding, dilation and groups follow the same rule.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: one extent, or one for each dimension.
        r: rank; 0 is the plain layer.
        lora_alpha: numerator of the scaling alpha / r.
        lora_dropout: dropout on the input of the update.
        merge_weights: `eval()` merges the update into the kernel, `train()` takes it out.
        kwargs: of the plain convolution.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        self._adapt(r, lora_alpha, lora_dropout, merge_weights)

    @property
    def conv(self) -> Self:
        """What loralib calls so: the plain layer, of which model code copies `conv.weight`."""
        return self

    def factor_shapes(self) -> tuple[Sequence[int], Sequence[int]]:
        """[r s, in q] and [out / groups s, r s]."""
        first, *others = self.kernel_size
        inner = self.r * first
        rows = self.out_channels // self.groups * first
        return (inner, self.in_channels * prod(others)), (rows, inner)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """[out, in / groups, *kernel]"""
        return (b @ a).view(self.weight.shape)

    def dense(self, a: Tensor, b: Tensor) -> Factors:
        """A [R, in, *kernel] and B [out, R, 1, ...], with R = r s s, or r if it came from there.

        Raises:
            ValueError: for groups, dilation and padding other than zeros, which PEFT's convolutions
                do not follow.
        """
        if not self._is_in_peft():
            raise ValueError(
                "PEFT has no LoRA for convolutions with groups, dilation or a padding_mode"
            )
        kernel, ones = self.kernel_size, [1] * len(self.kernel_size)
        unit = torch.eye(kernel[0], dtype=a.dtype, device=a.device)
        few = b[:: kernel[0], :: kernel[0]]
        if torch.kron(few, unit).equal(b):
            b = few
        else:
            a = torch.kron(unit, a)
        return a.reshape(-1, self.in_channels, *kernel), b.reshape(self.out_channels, -1, *ones)

    def _is_in_peft(self) -> bool:
        zeros = self.padding_mode == "zeros"  # type: ignore[attr-defined]
        return self.groups == prod(self.dilation) == 1 and zeros

    def from_dense(self, a: Tensor, b: Tensor) -> Factors:
        """The inverse of `dense`; any other PEFT adapter of rank r fits into rank r as well."""
        first, *others = self.kernel_size
        theirs = (len(a), self.in_channels, *self.kernel_size)
        outer = (self.out_channels, len(a), *[1] * len(self.kernel_size))
        if not self._is_in_peft() or (tuple(a.shape), tuple(b.shape)) != (theirs, outer):
            return a, b
        unit = torch.eye(first, dtype=b.dtype, device=b.device)
        if len(a) % first == 0:
            few = a.reshape(len(a), first, -1)[: len(a) // first, 0]
            if torch.kron(unit, few).equal(a.flatten(1)):
                return few, b.reshape(-1, len(few))
        return a.reshape(-1, self.in_channels * prod(others)), torch.kron(b.flatten(1), unit)

    def forward(self, input: Tensor) -> Tensor:
        """As the plain convolution, with the update."""
        apart = self.rows is not None or (self.training and self.lora_dropout.p > 0)
        if not self.is_adapted or apart or self._is_read_merged():
            return super().forward(input)
        base = self.base_weight  # one convolution with the sum is cheaper than two
        kernel = torch.add(base, self.product(self.lora_A, self.lora_B), alpha=self.scaling)
        return self._plain(input, kernel.to(base.dtype))

    def add_update(
        self, plain: Tensor, input: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """Two inputs [batch, channels, ...] -> the same."""
        kernel = (self.product(a, b) * scaling).to(plain.dtype)
        dropped = self.lora_dropout(input)
        return plain + self._conv_forward(dropped, kernel, None)  # type: ignore[operator]

    def _plain(self, input: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(input, weight, self.bias)  # type: ignore[operator]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("weight", "bias"):  # loralib's layer holds the plain one as `conv`
            if f"{prefix}conv.{name}" in state_dict:
                state_dict[f"{prefix}{name}"] = state_dict.pop(f"{prefix}conv.{name}")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Conv1d(Convolution, nn.Conv1d):
    """`torch.nn.Conv1d` with a low-rank update, see `Convolution`."""


class Conv2d(Convolution, nn.Conv2d):
    """`torch.nn.Conv2d` with a low-rank update, see `Convolution`."""


class Conv3d(Convolution, nn.Conv3d):
    """`torch.nn.Conv3d` with a low-rank update, see `Convolution`."""
