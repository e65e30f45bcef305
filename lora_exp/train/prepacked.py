"""Frozen linear layers in bf16 on a CPU, whose weights are laid out once as oneDNN multiplies them,
and not anew in each product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGEST = 2**30
"""Bytes of a model's linear layers, beyond which two more copies of them are not worth their
memory."""


@dataclass(frozen=True, eq=False)
class _Weight:
    """A frozen weight [out, in], plain and laid out."""

    plain: Tensor
    forth: Tensor
    """For rows [..., in]."""
    back: Tensor
    """For their gradients [..., out]."""


_known: WeakValueDictionary[int, _Weight] = WeakValueDictionary()
"""By the address of the plain one: models that share a weight share these as well."""


def prepack(model: nn.Module) -> None:
    """Have the plain linear layers of a model, as far as they are frozen and in bf16, multiply with
    weights that are laid out for it. Their parameters stay as they are.

    Args:
        model: on the CPU; its frozen weights must not change any more.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    layers = [module for module in model.modules() if _is_frozen(module)]
    if sum(layer.weight.nbytes for layer in layers) <= LARGEST:
        for layer in layers:
            layer.forward = _Prepacked(layer)


def copied_bytes(model: nn.Module) -> int:
    """What the copies take beside the parameters."""
    layers = (vars(module).get("forward") for module in model.modules())
    return sum(2 * layer.weight.plain.nbytes for layer in layers if isinstance(layer, _Prepacked))


def _is_frozen(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear or module.weight.dtype != torch.bfloat16:
        return False
    return not any(parameter.requires_grad for parameter in module.parameters())


class _Prepacked:
    """The forward of a linear layer: [..., in] -> bf16 [..., out]."""

    def __init__(self, layer: nn.Linear) -> None:
        plain = layer.weight.detach()
        known = _known.get(plain.data_ptr())
        if known is None:
            lay = torch.ops.mkldnn._reorder_linear_weight
            known = _known[plain.data_ptr()] = _Weight(plain, lay(plain), lay(plain.T.contiguous()))
        self.weight = known
        self.bias = None if layer.bias is None else layer.bias.detach().to(plain.dtype)

    def __call__(self, input: Tensor) -> Tensor:
        return _Product.apply(input.to(self.weight.plain.dtype), self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: _Weight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _multiply(rows, weight.forth, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None, None]:
        return _multiply(gradients[0], ctx.weight.back, None), None, None


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
