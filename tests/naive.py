"""LoRA as the paper writes it: the plain layer with the weight W + scaling B A, computed densely.

Nothing here calls the library's own arithmetic, so that it can be compared with it.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_exp import lora

Layer = TypeVar("Layer", bound=nn.Module)


def fill(model: Layer) -> Layer:
    """Give the LoRA layers factors of which neither is zero, or there would be nothing to see."""
    for _, layer in lora.lora_layers(model):
        for name, parameter in layer.named_parameters():
            if name in ("lora_A", "lora_B"):
                nn.init.normal_(parameter)
        if isinstance(layer, lora.Embedding) and layer.padding_idx is not None:
            with torch.no_grad():
                layer.lora_A[:, layer.padding_idx] = 0  # no training changes it
    return model


def delta(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    """scaling * B A in the shape of the plain layer's weight."""
    if isinstance(layer, lora.MergedLinear):
        return _of_slices(layer, a, b)
    scaling = layer.lora_alpha / (math.sqrt(layer.r) if layer.rslora else layer.r)
    if isinstance(layer, lora.Linear):
        return scaling * (b @ a)
    if isinstance(layer, lora.Embedding):
        return scaling * torch.einsum("rn,dr->nd", a, b)
    return scaling * torch.einsum("ri,or->oi", a, b).reshape(layer.base_weight.shape)


def _of_slices(layer: lora.MergedLinear, a: Tensor, b: Tensor) -> Tensor:
    parts, row_a, row_b = [], 0, 0
    ranks = iter(layer.ranks)
    for width, enabled in zip(layer.slice_widths, layer.enable_lora, strict=True):
        if not enabled:
            parts.append(a.new_zeros(width, layer.in_features))
            continue
        rank = next(ranks)
        scaling = layer.lora_alpha / (math.sqrt(rank) if layer.rslora else rank)
        block = b[row_b : row_b + width, :rank] @ a[row_a : row_a + rank]
        parts.append(scaling * block)
        row_a, row_b = row_a + rank, row_b + width
    return torch.cat(parts)


def output(layer: Any, plain: nn.Module, input: Tensor) -> Tensor:
    """What `layer` should compute.

    Args:
        layer: a LoRA layer.
        plain: a layer of torch with the same arguments; its own values are not used.
        input: of both.
    """
    base = layer.base_weight
    weight = base.T if getattr(layer, "fan_in_fan_out", False) else base
    values = {"weight": weight + delta(layer, layer.lora_A, layer.lora_B)}
    if getattr(layer, "bias", None) is not None:
        values["bias"] = layer.bias
    return functional_call(plain, values, (input,))


def check(layer: Any, plain: nn.Module, input: Tensor) -> None:
    """Outputs and gradients are the naive ones, training and not, merged and not."""
    fill(layer)
    if input.is_floating_point():
        input.requires_grad_()
    at = [layer.lora_A, layer.lora_B, *([input] if input.requires_grad else [])]
    expected = output(layer, plain, input)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, at, direction)
    for training in (True, False, True):
        layer.train(training)
        assert layer.merged is (layer.merge_weights and not training)
        found = layer(input)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, at, direction), gradients)
        with torch.no_grad():
            torch.testing.assert_close(layer(input), expected)
    assert layer.base_weight.grad is None


def every_kind(dtype: torch.dtype = torch.float32) -> dict[str, tuple[Any, Tensor]]:
    """A layer of each kind, filled, and an input of three rows for it."""
    merged = {"r": [1, 2, 0], "enable_lora": [True] * 3, "slice_widths": [3, 4, 2]}
    layers: dict[str, nn.Module] = {
        "linear": lora.Linear(6, 4, r=2, lora_alpha=4),
        "transposed": lora.Linear(6, 4, r=2, lora_alpha=4, fan_in_fan_out=True),
        "merged": lora.MergedLinear(6, 9, lora_alpha=4, **merged),
        "dora": lora.DoraLinear(6, 4, r=2, lora_alpha=4),
        "embedding": lora.Embedding(8, 4, r=2, lora_alpha=4, padding_idx=0),
        "conv1d": lora.Conv1d(6, 4, 3, r=2, lora_alpha=4),
        "conv2d": lora.Conv2d(6, 4, (3, 2), r=2, lora_alpha=4, groups=2, padding=1),
        "conv3d": lora.Conv3d(6, 4, (1, 3, 2), r=2, lora_alpha=4, bias=False),
    }
    inputs = {"embedding": torch.tensor([[1, 5], [0, 1], [7, 7]])}
    for dimensions in (1, 2, 3):
        inputs[f"conv{dimensions}d"] = torch.randn(3, 6, *[4] * dimensions, dtype=dtype)
    return {
        name: (fill(layer).to(dtype), inputs.get(name, torch.randn(3, 2, 6, dtype=dtype)))
        for name, layer in layers.items()
    }
