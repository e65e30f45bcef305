"""Which weights are trained, and which of them are LoRA's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from lora_exp.lora.base import LoraLayer


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The layers with an update, and their names in the model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and module.is_adapted:
            yield name, module


def mark_only_lora_as_trainable(
    model: nn.Module, bias: str = "none", also: Collection[str] = ()
) -> None:
    """Freeze everything but LoRA's matrices and, if asked, biases and whole modules.

    Args:
        model: has LoRA layers.
        bias: train no bias, those of the layers with LoRA, or all of them.
        also: names of modules that are trained in full, such as the head.

    Raises:
        ValueError: for another value of `bias`, or a module that does not exist.
    """
    chosen = {*_chosen(model, bias, also).values()}
    for parameter in model.parameters():
        parameter.requires_grad = parameter in chosen


def lora_state_dict(
    model: nn.Module, bias: str = "none", also: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors that `mark_only_lora_as_trainable` with the same arguments leaves trainable, and
    the buffers of the modules in `also`."""
    tensors = {name: p.detach() for name, p in _chosen(model, bias, also).items()}
    for module in also:
        tensors |= model.get_submodule(module).state_dict(prefix=f"{module}.")
    return tensors


def lora_plus(
    parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    ratio: float,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for an optimiser in which B learns faster than A (LoRA+, Hayou et al. 2024,
    arXiv:2402.12354). As in the authors' code, and in PEFT, so do vectors.

    Args:
        parameters: by name: `model.named_parameters()`. Frozen ones are left out.
        lr: learning rate of A and of other matrices that are trained.
        ratio: the learning rate of B and vectors over that; the paper advises about 16.
        weight_decay: of matrices; vectors (biases and norms) have none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            fast = name.rpartition(".")[2] == "lora_B" or parameter.ndim == 1
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr * ratio if fast else lr, decay), []).append(parameter)
    return [{"params": p, "lr": one, "weight_decay": d} for (one, d), p in groups.items()]


def _chosen(model: nn.Module, bias: str, also: Collection[str]) -> dict[str, nn.Parameter]:
    if bias not in ("none", "lora_only", "all"):
        raise ValueError(f"bias={bias!r}: there are none, lora_only and all")
    chosen: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        adapted = isinstance(module, LoraLayer) and module.is_adapted
        for own, parameter in module._parameters.items():
            with_bias = "bias" in own and (bias == "all" or (bias == "lora_only" and adapted))
            if parameter is not None and (with_bias or (adapted and own.startswith("lora_"))):
                chosen[f"{name}.{own}" if name else own] = parameter
    for module in also:
        try:
            inner = model.get_submodule(module)
        except AttributeError:
            raise ValueError(f"also={module!r}: the model has no such module") from None
        chosen |= {f"{module}.{own}": p for own, p in inner.named_parameters()}
    return chosen
