"""Prompt tuning: trained embeddings in front of every text (Lester et al. 2021, arXiv:2104.08691;
PreEmbed of the LoRA paper). An encoder's head reads what stands first, as in PEFT."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_exp.lora import named_generator
from lora_exp.methods.blocks import blocks_of
from lora_exp.methods.front import (
    Front,
    Fronts,
    keys_and_values,
    own,
    put_in_front,
    with_fronts,
    without,
)
from lora_exp.methods.virtual import files

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

__all__ = ["Prompt", "attach", "files", "own"]


class Prompt(Front):
    """Embeddings of positions that have no word."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length, self.size = length, length * width
        self.embedding = nn.Parameter(torch.empty(length, width))

    def initialise(self, seed: int, name: str, words: Tensor) -> None:
        """Begin as words, drawn from the vocabulary (Lester et al., section 3.2)."""
        if not self.embedding.is_meta:
            generator = named_generator(seed, f"{name}.embedding")
            drawn = torch.randint(len(words), (self.length,), generator=generator)
            self.embedding.data.copy_(words[drawn.to(words.device)])

    def kept(self) -> Tensor:
        """[length, width]"""
        return self.embedding

    def begin_from(self, kept: Tensor) -> None:
        """Take these embeddings."""
        with torch.no_grad():
            self.embedding.copy_(kept)

    def made(self) -> Tensor:
        """[length, width]"""
        return self.embedding


def attach(backbone: Backbone, config: Config) -> None:
    """Put a prompt in front, and train it.

    Raises:
        UserError: if the model's architecture is not known.
    """
    causal = blocks_of(backbone, config.method).causal
    words: Any = backbone.model.get_input_embeddings()
    prompt = Prompt(config.prompt.length, words.weight.shape[1])
    forward = _decoder if causal else partial(_encoder, words)
    put_in_front(backbone, config, prompt, partial(forward, prompt))
    drawn_from = words.weight.detach()
    if config.train.precision == "bf16":  # as which words are kept, possibly from now on
        drawn_from = drawn_from.to(torch.bfloat16)
    prompt.initialise(config.seed, f"{backbone.model.base_model_prefix}.prompt", drawn_from)


def _decoder(
    prompt: Prompt, base: nn.Module, input_ids: Tensor | None = None, **inputs: Any
) -> Any:
    def make() -> Fronts:
        return keys_and_values(base, prompt(), inputs.get("flat_layout"))

    return with_fronts(base, make, input_ids=input_ids, **inputs)


def _encoder(
    words: nn.Module, prompt: Prompt, base: nn.Module, input_ids: Tensor, **inputs: Any
) -> Any:
    embedded = words(input_ids)
    prompts = [some.to(embedded.dtype) for some in prompt()]
    lengths = [len(some) for some in prompts]
    where, types = inputs.get("flat_layout"), inputs.get("token_type_ids")
    if where is None:
        (alone,), (length,) = prompts, lengths
        inputs["inputs_embeds"] = torch.cat([alone.expand(len(embedded), -1, -1), embedded], 1)
        inputs["attention_mask"] = F.pad(inputs["attention_mask"], (length, 0), value=1)
        if types is not None:
            inputs["token_type_ids"] = F.pad(types, (length, 0))
        return without(base, **inputs)
    index, longer = where.lengthened(lengths)
    inputs["inputs_embeds"] = torch.cat([*prompts, embedded[0]]).index_select(0, index)[None]
    if types is not None:
        padded = F.pad(types[0], (sum(lengths), 0))
        inputs["token_type_ids"] = padded.index_select(0, index)[None]
    first = inputs["position_ids"][0, 0]
    inputs |= {"flat_layout": longer, "position_ids": (longer.positions + first)[None]}
    return without(base, **inputs)
