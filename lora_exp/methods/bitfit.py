"""BitFit: every bias of the backbone is trained, and the head (Ben Zaken et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_exp.errors import UserError
from lora_exp.lora.linear import is_transposed
from lora_exp.methods.full import files
from lora_exp.methods.together import Own, Spans, own_modules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

__all__ = ["attach", "files", "own"]


def attach(backbone: Backbone, config: Config) -> None:
    """Train every parameter that its module calls `bias`, those of the norms included; they are
    copies, as other runs may use the pre-trained ones.

    Raises:
        UserError: if there are none.
    """
    copies: dict[nn.Parameter, nn.Parameter] = {}  # biases that are tied stay so
    for module in _with_bias(backbone.model).values():
        if module.bias not in copies:
            copies[module.bias] = nn.Parameter(module.bias.detach().clone())
        module.bias = copies[module.bias]
    if not copies:
        raise UserError("method=bitfit: this model has no biases to train. Choose another method.")


def own(backbone: Backbone, config: Config) -> Own:
    """The modules of the pre-trained part that have a bias."""
    return own_modules(_with_bias(backbone.model.base_model), _each_its_bias)


def _with_bias(model: nn.Module) -> dict[str, Any]:
    modules = model.named_modules()
    return {name: one for name, one in modules if one._parameters.get("bias") is not None}


def _each_its_bias(modules: Sequence[Any], spans: Spans, given: Tensor) -> Tensor:
    """What they share is computed once for all rows, and each run's bias is added to its own."""
    first, rows = modules[0], given.shape[-2]
    if rows not in spans:  # a pooler's: the rows of the first run alone
        return type(first).forward(first, given)
    if isinstance(first, nn.LayerNorm):
        plain = F.layer_norm(given, first.normalized_shape, first.weight, None, first.eps)
    else:
        plain = F.linear(given, first.weight.T if is_transposed(first) else first.weight)
    output = _Biased.apply(plain, spans[rows], *(module.bias for module in modules))
    assert isinstance(output, Tensor)
    return output


class _Biased(torch.autograd.Function):
    """Rows [..., rows, width], to each span of which a bias is added in place."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, spans: Sequence[slice], *biases: Tensor) -> Tensor:
        ctx.mark_dirty(rows)
        ctx.spans, ctx.dtype = spans, biases[0].dtype
        for span, bias in zip(spans, biases, strict=True):
            rows[..., span, :] += bias
        return rows

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows = gradients[0].flatten(0, -2)
        of_biases = (rows[span].sum(0, dtype=ctx.dtype) for span in ctx.spans)
        return gradients[0], None, *of_biases
