"""Flat batches: sequences end to end, `[1, tokens]`, no padding, through transformers' own code.

Linear layers, norms and embeddings do not care where a sequence ends; attention does. It is given a
`Layout` (transformers passes unknown keywords on to the attention function) and works on groups of
sequences of about equal length, so that what little padding is left is paid for by attention alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from lora_exp.models import first_position

if TYPE_CHECKING:
    from lora_exp.train.batches import Batch

ATTENTION = "lora_exp_flat"
SHORTEST = 0.75
"""A group's shortest sequence is at least this share of its longest."""


@dataclass(frozen=True)
class Group:
    """Sequences that attention takes together."""

    start: int
    """First of the group's slots."""
    sequences: int
    length: int
    """Slots per sequence: its tokens, then padding up to the longest of the group."""
    mask: Tensor | None
    """bool [sequences, 1, 1, length]: which slots hold a token; None where all do."""


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a flat batch lie, and the slots that attention arranges them in."""

    positions: Tensor
    """[tokens]: each token's place in its sequence, from 0."""
    first: Tensor
    """[sequences]: each sequence's first token."""
    last: Tensor
    """[sequences]: each sequence's last token."""
    slots: Tensor
    """[slots]: the token in each slot; a slot of padding names token 0, which nothing looks at."""
    tokens: Tensor
    """[tokens]: the slot of each token."""
    real: Tensor | None
    """bool [slots, 1, 1]: which slots hold a token; None where all do."""
    groups: list[Group]


def layout(lengths: Sequence[int], device: torch.device | str) -> Layout:
    """The layout of sequences of these lengths that lie end to end."""
    sizes = np.asarray(lengths)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    order = np.argsort(-sizes, kind="stable")
    groups: list[Group] = []
    slots: list[np.ndarray] = []
    start = at = 0
    while at < len(order):
        longest = int(sizes[order[at]])
        members = order[at:][sizes[order[at:]] >= SHORTEST * longest]
        at += len(members)
        offsets = np.arange(longest)
        real = offsets[None, :] < sizes[members][:, None]
        slots.append(np.where(real, first[members][:, None] + offsets[None, :], -1).reshape(-1))
        mask = None if real.all() else torch.from_numpy(real[:, None, None, :]).to(device)
        groups.append(Group(start, len(members), longest, mask))
        start += real.size
    arranged = np.concatenate(slots)
    is_real = arranged >= 0
    tokens = np.empty(sizes.sum(), dtype=np.int64)
    tokens[arranged[is_real]] = np.flatnonzero(is_real)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Layout(
        positions=tensor(np.arange(sizes.sum()) - np.repeat(first, sizes)),
        first=tensor(first),
        last=tensor(first + sizes - 1),
        slots=tensor(np.maximum(arranged, 0)),
        tokens=tensor(tokens),
        real=None if is_real.all() else tensor(is_real[:, None, None]),
        groups=groups,
    )


class _Rearrange(torch.autograd.Function):
    """Rows by index. Each row is wanted at most once, so the gradient is a look-up, too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor, real: Tensor | None) -> Tensor:
        ctx.back, ctx.real = back, real
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].index_select(0, ctx.back)
        return gradient if ctx.real is None else gradient * ctx.real, None, None, None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    flat_layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a flat batch.

    Args:
        module: transformers' attention module; its `is_causal` is honoured.
        query: [1, heads, tokens, width], and so are key and value.
        attention_mask: not needed, the layout says it all.
        flat_layout: of this batch.
        scaling: of the scores; None is 1 / sqrt(width).
        dropout: probability for the attention weights.

    Returns:
        [1, tokens, heads, width], and no weights.
    """
    where, causal, given = flat_layout, bool(getattr(module, "is_causal", False)), query.dtype
    # bf16 attention is slow on CPUs; it is a small share of the work, so do it exactly.
    upcast = given == torch.bfloat16 and query.device.type == "cpu"
    arranged = [
        _Rearrange.apply(
            (rows.float() if upcast else rows)[0].transpose(0, 1), where.slots, where.tokens, None
        )
        for rows in (query, key, value)
    ]
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        for group in where.groups:
            span = slice(group.start, group.start + group.sequences * group.length)
            q, k, v = (
                rows[span].unflatten(0, (group.sequences, group.length)).transpose(1, 2)
                for rows in arranged
            )
            mask = None if causal else group.mask  # padding is last: no token looks ahead at it
            result = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling
            )
            outputs.append(result.transpose(1, 2).flatten(0, 1))
    rows = _Rearrange.apply(torch.cat(outputs), where.tokens, where.slots, where.real)
    return rows.to(given).unsqueeze(0), None


def _no_mask(*arguments: Any, **keywords: Any) -> None:
    """The mask function that goes with `attention`: the layout takes the mask's place."""


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)


@dataclass(frozen=True)
class Family:
    """What has to be known of an architecture to feed it flat batches."""

    head: Callable[[Any, Tensor], Tensor]
    """(model, rows [sequences, hidden]) -> logits [sequences, classes]."""
    reads: str = "first"
    """The token of each sequence that the head reads: `first` or `last`."""


def _bert_head(model: Any, rows: Tensor) -> Tensor:
    pooled = model.bert.pooler(rows[:, None])  # the library's heads read the token at position 0
    return model.classifier(model.dropout(pooled))


def _roberta_head(model: Any, rows: Tensor) -> Tensor:
    return model.classifier(rows[:, None])


def _gpt2_head(model: Any, rows: Tensor) -> Tensor:
    return model.score(rows)


_ROBERTA = Family(_roberta_head)
FAMILIES = {
    "bert": Family(_bert_head),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "gpt2": Family(_gpt2_head, reads="last"),
}
"""Architectures that take flat batches, by transformers' `model_type`; others are padded."""


def logits(model: Any, batch: Batch) -> Tensor:
    """[sequences, classes] for a flat batch.

    Args:
        model: a sequence classifier of transformers, of one of `FAMILIES`, with `ATTENTION` set.
        batch: on the model's device.
    """
    family = FAMILIES[model.config.model_type]
    where = layout(batch.lengths, batch.input_ids.device)
    positions = where.positions + first_position(model)
    inputs = {"input_ids": batch.input_ids[None], "position_ids": positions[None]}
    if batch.token_types is not None:
        inputs["token_type_ids"] = batch.token_types[None]
    hidden = model.base_model(**inputs, flat_layout=where, use_cache=False).last_hidden_state
    read = where.first if family.reads == "first" else where.last
    return family.head(model, hidden[0].index_select(0, read))
