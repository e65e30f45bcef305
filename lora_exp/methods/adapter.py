"""Adapters: small bottleneck networks between the layers' parts, which stay as they are.

`houlsby`: after attention and after the MLP (Houlsby et al. 2019, arXiv:1902.00751); `pfeiffer`:
after the MLP (Pfeiffer et al. 2021, arXiv:2005.00247); `lin`: on the output of each layer, with a
LayerNorm of its own (Lin et al. 2020, arXiv:2004.03829; Adapter^L of the LoRA paper).
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_exp.errors import UserError
from lora_exp.lora import named_generator
from lora_exp.methods.blocks import Blocks, blocks_of, layers_of
from lora_exp.methods.full import files
from lora_exp.methods.together import Own, Spans, own_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_exp.models import Backbone
    from lora_exp.runs.config import AdapterConfig, Config

__all__ = ["Adapter", "attach", "files", "own"]

DEVIATION = 0.01
"""Standard deviation of the initial weights: almost the identity (Houlsby et al., section 3.6).
microsoft/LoRA begins with the model's initializer_range."""


class Adapter(nn.Module):
    """Down to a few units, a nonlinearity, up again; added to what it is given.

    Args:
        width: of the hidden states.
        size: units of the bottleneck.
        activation: between the two projections.
        normalised: the input goes through a LayerNorm first.
    """

    def __init__(
        self, width: int, size: int, activation: Callable[[Tensor], Tensor], normalised: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if normalised else nn.Identity()
        self.down = nn.Linear(width, size)
        self.activation = activation
        self.up = nn.Linear(size, width)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., width] -> [..., width].

        Args:
            hidden: the input.
            residual: what the result is added to, if that is not the input.
        """
        change = self.up(self.activation(self.down(self.norm(hidden))))
        return change + (hidden if residual is None else residual)

    def initialise(self, seed: int, name: str) -> None:
        """Give it its initial values: a function of the seed and of its own name."""
        for part in ("down", "up"):
            linear = getattr(self, part)
            if not linear.weight.is_meta:
                generator = named_generator(seed, f"{name}.{part}.weight")
                bound = 2 * DEVIATION
                nn.init.trunc_normal_(
                    linear.weight, 0, DEVIATION, -bound, bound, generator=generator
                )
                nn.init.zeros_(linear.bias)


def attach(backbone: Backbone, config: Config) -> None:
    """Put adapters in every layer, and train them.

    Raises:
        UserError: if the model's layers are not known, or so few parameters make no adapter.
    """
    blocks, layers = blocks_of(backbone, config.method), layers_of(backbone, config.method)
    width = int(backbone.model.config.hidden_size)
    kind, size = config.adapter.kind, bottleneck(config.adapter, width, len(layers))
    # The nonlinearities of microsoft/LoRA (examples/NLU), and of Lin et al.
    activation = F.silu if kind == "houlsby" else F.relu
    for layer in layers:
        for place in _places(kind, blocks):
            parent = layer.get_submodule(place if blocks.post_norm else place.rpartition(".")[0])
            parent.adapter = Adapter(width, size, activation, kind == "lin")
            _insert(kind, blocks.post_norm, layer.get_submodule(place), parent.adapter)
    for name, module in _adapters(backbone).items():
        module.initialise(config.seed, name)


def own(backbone: Backbone, config: Config) -> Own:
    """The adapters."""
    return own_modules(_adapters(backbone), _each_its_rows)


def _adapters(backbone: Backbone) -> dict[str, Adapter]:
    modules = backbone.model.named_modules()
    return {name: module for name, module in modules if isinstance(module, Adapter)}


def _each_its_rows(adapters: Sequence[Adapter], spans: Spans, *inputs: Tensor) -> Tensor:
    """The rows of each run through its own adapter."""
    sizes = [span.stop - span.start for span in spans[inputs[0].shape[-2]]]
    parts = [rows.split(sizes, -2) for rows in inputs]
    outputs = [Adapter.forward(*one) for one in zip(adapters, *parts, strict=True)]
    return torch.cat(outputs, -2)


def bottleneck(config: AdapterConfig, width: int, layers: int) -> int:
    """Units of each bottleneck: `adapter.size`, or the number with which all adapters together have
    about `adapter.parameters`.

    Raises:
        UserError: if those do not suffice for one unit.
    """
    if config.parameters is None:
        return config.size
    number = layers * (2 if config.kind == "houlsby" else 1)
    # Each unit has a row, a column and a bias; besides there are the bias of `up` and the norm.
    each, besides = 2 * width + 1, width * (3 if config.kind == "lin" else 1)
    size = round((config.parameters / number - besides) / each)
    if size < 1:
        raise UserError(
            f"adapter.parameters={config.parameters}: {number} adapters of one unit have "
            f"{number * (each + besides):,} already."
        )
    return size


def _places(kind: str, blocks: Blocks) -> tuple[str, ...]:
    if kind == "lin":
        return ("",)  # the layer itself
    return blocks.outputs if kind == "houlsby" else blocks.outputs[1:]


def _insert(kind: str, post_norm: bool, module: nn.Module, adapter: Adapter) -> None:
    if kind == "lin" or not post_norm:
        module.register_forward_hook(partial(_after, adapter))
    else:
        within = _normalised_first if kind == "pfeiffer" else _before_norm
        module.forward = MethodType(within, module)


def _after(adapter: Adapter, module: nn.Module, given: Any, output: Any) -> Any:
    """A module's output through an adapter; some layers return more than hidden states."""
    if isinstance(output, Tensor):
        return adapter(output)
    return (adapter(output[0]), *output[1:])


def _before_norm(output: Any, hidden: Tensor, given: Tensor) -> Tensor:
    """BertOutput and its kin, with an adapter before the addition."""
    own = output.dropout(output.dense(hidden))
    return output.LayerNorm(output.adapter(own) + given)


def _normalised_first(output: Any, hidden: Tensor, given: Tensor) -> Tensor:
    """The same, where the adapter reads what the layer would have given without it."""
    own = output.dropout(output.dense(hidden))
    return output.LayerNorm(output.adapter(output.LayerNorm(own + given), own) + given)
