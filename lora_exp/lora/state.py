"""Which weights are trained, and which of them are LoRA's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from lora_exp.lora.layers import LoraLayer

Bias = Literal["none", "lora_only", "all"]


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The layers with an update, and their names in the model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and hasattr(module, "lora_A"):
            yield name, module


def mark_only_lora_as_trainable(model: nn.Module, bias: Bias = "none") -> None:
    """Freeze everything but LoRA's matrices and, if asked, biases.

    Args:
        model: has LoRA layers.
        bias: train no bias, those of the layers with LoRA, or all of them.

    Raises:
        ValueError: for another value of `bias`.
    """
    chosen = _names(model, bias)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in chosen


def lora_state_dict(model: nn.Module, bias: Bias = "none") -> dict[str, Tensor]:
    """The tensors that `mark_only_lora_as_trainable` with the same `bias` leaves trainable."""
    chosen = _names(model, bias)
    return {name: tensor for name, tensor in model.state_dict().items() if name in chosen}


def _names(model: nn.Module, bias: Bias) -> set[str]:
    if bias not in ("none", "lora_only", "all"):
        raise ValueError(f"bias={bias!r}: there are none, lora_only and all")
    names = {f"{name}.{part}" for name, _ in lora_layers(model) for part in ("lora_A", "lora_B")}
    for name, module in model.named_modules():
        adapted = isinstance(module, LoraLayer) and hasattr(module, "lora_A")
        if bias == "all" or (bias == "lora_only" and adapted):
            names |= {
                f"{name}.{own}" if name else own
                for own, _ in module.named_parameters(recurse=False)
                if own == "bias"
            }
    return names
