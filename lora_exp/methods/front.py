"""What stands in front of every sequence: keys and values that each layer's attention sees as well.

A prefix is made of them; in a decoder a prompt comes to the same, as its positions see nothing that
follows. They are given to attention beside the sequences' own, so that flat batches, padded ones
and decoding with a cache all work on the sequences as they are; their positions are counted on.
In a flat batch each run has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from lora_exp.methods.blocks import blocks_of, layers_of
from lora_exp.methods.together import Own, Spans, own_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

ATTENTION = "lora_exp_front"

Fronts = Mapping[nn.Module, Sequence[tuple[Tensor, Tensor]]]
"""By attention module, each run's keys and values [heads, positions, width]."""


class Front(nn.Module):
    """What is trained, as a part of the pre-trained part."""

    length: int
    """Number of positions."""
    size: int
    """Number of values that are kept after training."""

    def kept(self) -> Tensor:
        """What of it is kept after training, as PEFT saves it: [length, values]."""
        raise NotImplementedError

    def begin_from(self, kept: Tensor) -> None:
        """Start where another one ended."""
        raise NotImplementedError

    def made(self) -> Any:
        """What stands in front of this run's sequences."""
        raise NotImplementedError

    def forward(self) -> list[Any]:
        """What stands in front of the sequences of each run in the pass."""
        return [self.made()]


def put_in_front(backbone: Backbone, config: Config, front: Front, forward: Callable) -> None:
    """Make it a part of the pre-trained part, under the method's name, and train it.

    Args:
        backbone: of a known architecture.
        config: of the run.
        front: what is trained.
        forward: takes the place of the pre-trained part's `forward`, and is given that part first.
    """
    base: Any = backbone.model.base_model
    setattr(base, config.method, front)
    base.in_front = front.length
    base.forward = partial(forward, base)
    front.requires_grad_(True)


def own(backbone: Backbone, config: Config) -> Own:
    """What stands in front."""
    front: Front = getattr(backbone.model.base_model, config.method)
    return own_modules({config.method: front}, _of_each)


def _of_each(fronts: Sequence[Front], spans: Spans) -> list[Any]:
    return [front.made() for front in fronts]


def attentions(backbone: Backbone, config: Config) -> list[nn.Module]:
    """The attention modules, from the bottom."""
    path = blocks_of(backbone, config.method).attention
    return [layer.get_submodule(path) for layer in layers_of(backbone, config.method)]


def without(base: Any, **inputs: Any) -> Any:
    """What the pre-trained part gives if nothing stands in front."""
    where = inputs.get("flat_layout")
    with nullcontext() if where is None else where.dropping():
        return type(base).forward(base, **inputs)


def with_fronts(base: Any, make: Callable[[], Fronts], **inputs: Any) -> Any:
    """What it gives if something stands in front.

    Args:
        base: the pre-trained part.
        make: gives what does; while a text is being written it is asked once.
        inputs: with a `flat_layout`, if the batch is flat.
    """
    where, cache = inputs.get("flat_layout"), inputs.get("past_key_values")
    fronts: Fronts = getattr(cache, "fronts", None) or make()
    lengths = [key.shape[1] for key, _ in next(iter(fronts.values()))]
    if where is not None:
        where.fronts = fronts
        inputs["position_ids"] = inputs["position_ids"] + where.of_tokens(lengths)
        return without(base, **inputs)
    if base.config.model_type == "deberta-v2":  # its positions are relative
        for module, (pair,) in fronts.items():
            module.front = pair  # pyright: ignore[reportArgumentType]
        return without(base, **inputs)
    if cache is not None:
        cache.fronts = fronts
    if inputs.get("position_ids") is None:
        ids = inputs["input_ids"]
        seen = 0 if cache is None else cache.get_seq_length()
        inputs["position_ids"] = torch.arange(seen, seen + ids.shape[1], device=ids.device)[None]
    inputs["position_ids"] = inputs["position_ids"] + lengths[0]
    with _attending(base.config):
        return without(base, **inputs, fronts=fronts)


def keys_and_values(base: Any, embeddings: Sequence[Tensor], layout: Any | None) -> Fronts:
    """The keys and values to which a decoder's first positions lead.

    Args:
        base: the pre-trained part.
        embeddings: [positions, width] of each run, of these positions.
        layout: of the batch, if it is flat; else there is one run.
    """
    lengths = [len(some) for some in embeddings]
    noted: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    inputs: dict[str, Any] = {"inputs_embeds": torch.cat([*embeddings])[None], "use_cache": False}
    if layout is not None:
        own = type(layout)(lengths, embeddings[0].device, [1] * len(lengths), apart=True)
        own.noted, inputs["position_ids"] = noted, own.positions[None]
        without(base, **inputs, flat_layout=own)
    else:
        inputs["position_ids"] = torch.arange(*lengths, device=embeddings[0].device)[None]
        with _attending(base.config):
            without(base, **inputs, fronts={}, noted=noted)
    return {
        module: list(zip(key.split(lengths, 1), value.split(lengths, 1), strict=True))
        for module, (key, value) in noted.items()
    }


@contextmanager
def _attending(config: Any) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    fronts: Fronts,
    noted: dict[nn.Module, tuple[Tensor, Tensor]] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[Tensor, None]:
    """A decoder's attention in padded batches and with a cache, as transformers calls it."""
    if noted is not None:
        noted[module] = key[0], value[0]
    mask = attention_mask
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
        mask = mask.tril(key.shape[2] - query.shape[2])
    if module in fronts:
        key, value = (
            torch.cat([front.to(own.dtype).expand(len(own), -1, -1, -1), own], 2)
            for front, own in zip(*fronts[module], (key, value), strict=True)
        )
        seen = True if mask.dtype == torch.bool else 0.0
        mask = F.pad(mask, (key.shape[2] - mask.shape[-1], 0), value=seen)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask if mask.dtype == torch.bool else mask.to(query.dtype),
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def let_in(module: Any) -> None:
    """Have DeBERTa's attention, which is its own, see what stands in front of it (`front`)."""
    module.forward = MethodType(_disentangled, module)


def _disentangled(
    inner: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, None]:
    """DisentangledSelfAttention. What stands in front is at no distance from any token, so scores
    with it are those of the contents alone (as in P-tuning v2, Liu et al. 2022)."""
    heads, count = inner.num_attention_heads, len(hidden_states)
    read = hidden_states if query_states is None else query_states
    query, key, value = (
        inner.transpose_for_scores(projection(states), heads)  # [count * heads, tokens, width]
        for projection, states in (
            (inner.query_proj, read),
            (inner.key_proj, hidden_states),
            (inner.value_proj, hidden_states),
        )
    )
    front_key, front_value = (part.to(key.dtype).repeat(count, 1, 1) for part in inner.front)
    parts = 1 + len({"c2p", "p2c"} & set(inner.pos_att_type))
    scaled = torch.cat([front_key, key], 1) / (query.shape[-1] * parts) ** 0.5
    scores = torch.bmm(query, scaled.transpose(1, 2))
    length = front_key.shape[1]
    if inner.relative_attention:
        places = inner.pos_dropout(rel_embeddings)
        bias = inner.disentangled_attention_bias(query, key, relative_pos, places, parts)
        scores = scores + F.pad(bias, (length, 0))
    scores = scores.unflatten(0, (count, heads))
    visible = F.pad(attention_mask.bool(), (length, 0), value=True)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    shares = inner.dropout(torch.softmax(scores, -1)).flatten(0, 1)
    seen = torch.bmm(shares, torch.cat([front_value, value], 1)).unflatten(0, (count, heads))
    return seen.transpose(1, 2).flatten(2), None
