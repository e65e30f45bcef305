"""Layers that add a trainable low-rank update to a frozen weight (Hu et al. 2021, section 4.1).

        x ------------> W (frozen) ------------+--> W x + b + (alpha / r) B A dropout(x)
         \\                                    /
          dropout --> A [r, in] --> B [out, r]

Arguments and parameter names are those of loralib, so its state dictionaries load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraLayer(nn.Linear):
    """What the layers share: the frozen weight and what is needed to adapt it.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        r: rank; 0 is the plain layer.
        lora_alpha: numerator of the scaling alpha / r.
        lora_dropout: dropout on the input of A.
        fan_in_fan_out: the weight is stored as [in, out] (Conv1D of GPT-2) instead of [out, in].
        kwargs: `bias`, `device` and `dtype` of `torch.nn.Linear`.
    """

    lora_A: nn.Parameter  # noqa: N815 (loralib's name, which its checkpoints hold)
    lora_B: nn.Parameter  # noqa: N815

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_features, out_features, **kwargs)
        self.r = r
        self.lora_alpha = lora_alpha
        self.scaling = lora_alpha / r if r > 0 else 0.0
        self.lora_dropout = nn.Dropout(lora_dropout)
        self.fan_in_fan_out = fan_in_fan_out
        if fan_in_fan_out:
            self.weight.data = self.weight.data.T

    def _add_lora(self, rows_of_a: int, rows_of_b: int) -> None:
        self.weight.requires_grad = False
        self.lora_A = nn.Parameter(self.weight.new_empty(rows_of_a, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_empty(rows_of_b, self.r))
        self.reset_lora_parameters()

    def reset_lora_parameters(
        self, generator: torch.Generator | None = None, *, normal: float | None = None
    ) -> None:
        """Start anew: A random, B zero, so that the update is zero.

        Args:
            generator: on the CPU; None is the global one.
            normal: standard deviation of a normal A; None is uniform as in `torch.nn.Linear`
                (kaiming, a = sqrt 5).
        """
        if self.lora_A.is_meta:
            return
        values = torch.empty(self.lora_A.shape)
        if normal is None:
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
        else:
            nn.init.normal_(values, std=normal, generator=generator)
        with torch.no_grad():
            self.lora_A.copy_(values)
            self.lora_B.zero_()

    @classmethod
    def wrap(cls, module: nn.Module, **arguments: Any) -> Self:
        """The layer in place of `module`, whose weight and bias it takes over, not copied.

        Args:
            module: a `torch.nn.Linear` or a Conv1D of transformers.
            arguments: `r`, `lora_alpha`, `lora_dropout` and what the layer adds to these.
        """
        weight, bias = module.weight, module.bias
        assert isinstance(weight, nn.Parameter)
        transposed = is_transposed(module)
        out_features, in_features = weight.T.shape if transposed else weight.shape
        layer = cls(
            in_features,
            out_features,
            fan_in_fan_out=transposed,
            bias=bias is not None,
            device="meta",  # no second copy of the weight, not even for a moment
            **arguments,
        )
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        weight.requires_grad = False
        for name in ("lora_A", "lora_B"):
            shape = getattr(layer, name).shape
            setattr(layer, name, nn.Parameter(torch.empty(shape, device=weight.device)))
        layer.reset_lora_parameters()
        return layer.train(module.training)

    def _plain(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T if self.fan_in_fan_out else self.weight, self.bias)


class Linear(LoraLayer):
    """`torch.nn.Linear` with a low-rank update over the whole output."""

    def __init__(self, in_features: int, out_features: int, r: int = 0, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, r, **kwargs)
        if r > 0:
            self._add_lora(r, out_features)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        if self.r == 0:
            return self._plain(input)
        low = F.linear(self.lora_dropout(input), self.lora_A) * self.scaling
        return self._plain(input) + F.linear(low, self.lora_B)


class MergedLinear(LoraLayer):
    """A fused projection (query, key and value in one) with an update for some of its slices.

    lora_A is [enabled * r, in]: a block of r rows for each enabled slice; lora_B is
    [enabled * slice, r]: a block of rows for each.

    Args:
        enable_lora: for each of the equal slices of the output, whether it gets an update.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        enable_lora: Sequence[bool] = (False,),
        **kwargs: Any,
    ) -> None:
        super().__init__(in_features, out_features, r, **kwargs)
        if out_features % len(enable_lora):
            raise ValueError(
                f"{out_features} outputs do not divide into {len(enable_lora)} equal slices"
            )
        self.enable_lora = tuple(enable_lora)
        if r > 0 and any(enable_lora):
            enabled = sum(self.enable_lora)
            self._add_lora(enabled * r, enabled * self.slice_width)

    @property
    def slice_width(self) -> int:
        """Outputs of one slice."""
        return self.out_features // len(self.enable_lora)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        if self.r == 0 or not any(self.enable_lora):
            return self._plain(input)
        low = F.linear(self.lora_dropout(input), self.lora_A) * self.scaling
        blocks = zip(low.split(self.r, dim=-1), self.lora_B.split(self.slice_width), strict=True)
        updates = [F.linear(rows, columns) for rows, columns in blocks]
        plain = self._plain(input)
        slices = list(plain.split(self.slice_width, dim=-1))
        for place, update in zip(self.enabled_slices(), updates, strict=True):
            slices[place] = slices[place] + update
        return torch.cat(slices, dim=-1)

    def enabled_slices(self) -> list[int]:
        """The numbers of the slices that get an update."""
        return [number for number, enabled in enumerate(self.enable_lora) if enabled]


def is_transposed(module: nn.Module) -> bool:
    """Whether a module stores its weight as [in, out]: the Conv1D of transformers' GPT-2.

    Known by its name, so that a library for any PyTorch model need not import transformers.
    """
    return type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor)
