"""Prefix tuning: trained keys and values in front of every sequence, in each layer (Li and Liang
2021, arXiv:2101.00190). A network makes them while training; only what it makes is kept."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_exp.lora import named_generator
from lora_exp.methods.front import (
    Front,
    Fronts,
    attentions,
    let_in,
    own,
    put_in_front,
    with_fronts,
)
from lora_exp.methods.virtual import files

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

__all__ = ["Prefix", "attach", "files", "own"]


class Prefix(Front):
    """Keys and values, or what makes them: an embedding of each position and a network.

    Args:
        length: positions.
        shape: (layers, heads, width) of keys and values.
        hidden: (width of the embedding, hidden units of the network); None trains them directly.
    """

    def __init__(
        self, length: int, shape: tuple[int, int, int], hidden: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.length, self.shape, self.reparametrised = length, shape, hidden is not None
        layers, heads, width = shape
        values = 2 * layers * heads * width
        self.size = length * values
        self.embedding = nn.Parameter(torch.empty(length, hidden[0] if hidden else values))
        if hidden is not None:
            self.down, self.up = nn.Linear(*hidden), nn.Linear(hidden[1], values)
            self.register_buffer("offset", torch.zeros(length, values), persistent=False)

    def initialise(self, seed: int, name: str) -> None:
        """Normal embeddings and torch's usual linear layers, as in Li and Liang's code; each tensor
        a function of the seed and of its own name."""
        for part, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            generator = named_generator(seed, f"{name}.{part}")
            if part == "embedding":
                nn.init.normal_(parameter, generator=generator)
            else:
                layer = self.get_submodule(part.partition(".")[0])
                bound = 1 / math.sqrt(layer.in_features)  # pyright: ignore[reportArgumentType]
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def kept(self) -> Tensor:
        """[length, layers * 2 * heads * width]: for each position the key and the value of each
        layer, one after the other, as PEFT has them."""
        if not self.reparametrised:
            return self.embedding
        with torch.autocast(self.embedding.device.type, enabled=False):
            return self.up(torch.tanh(self.down(self.embedding))) + self.offset

    def begin_from(self, kept: Tensor) -> None:
        """The network cannot be found again: what it makes now is made up for by a constant."""
        with torch.no_grad():
            if self.reparametrised:
                self.offset += kept.to(self.offset) - self.kept()
            else:
                self.embedding.copy_(kept)

    def made(self) -> list[tuple[Tensor, Tensor]]:
        """For each layer keys and values, [heads, length, width]."""
        layers, heads, width = self.shape
        parts = self.kept().view(self.length, layers, 2, heads, width).permute(1, 2, 3, 0, 4)
        return [(layer[0], layer[1]) for layer in parts]


def attach(backbone: Backbone, config: Config) -> None:
    """Put a prefix in front, and train it.

    Raises:
        UserError: if the model's layers are not known.
    """
    modules, own = attentions(backbone, config), backbone.model.config
    heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    width = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    hidden = (own.hidden_size, config.prefix.hidden) if config.prefix.hidden else None
    prefix = Prefix(config.prefix.length, (len(modules), heads, width), hidden)
    if own.model_type == "deberta-v2":
        for module in modules:
            let_in(module)
    put_in_front(backbone, config, prefix, partial(_forward, prefix, modules))
    prefix.initialise(config.seed, f"{backbone.model.base_model_prefix}.prefix")


def _forward(
    prefix: Prefix,
    modules: list[nn.Module],
    base: nn.Module,
    input_ids: Tensor | None = None,
    **inputs: Any,
) -> Any:
    def make() -> Fronts:
        return dict(zip(modules, zip(*prefix(), strict=True), strict=True))

    return with_fronts(base, make, input_ids=input_ids, **inputs)
