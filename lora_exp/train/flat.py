"""Flat batches: sequences end to end, `[1, tokens]`, no padding, through transformers' own code.

Linear layers, norms and embeddings do not care where a sequence ends; attention does. It is given a
`Layout` (transformers passes unknown keywords on to the attention function) and works on groups of
sequences of about equal length, so that what little padding is left is paid for by attention alone;
on a GPU, a kernel for sequences of any length takes them as they lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from lora_exp.train import dropout as dropping
from lora_exp.train.layout import Group, Layout

ATTENTION = "lora_exp_flat"
SHORT = 128
"""Tokens up to which attention on a CPU keeps its weights for the backward pass, as it has to with
dropout; for longer sequences they would take too much memory."""
NARROW = 16
"""Rows of scores that are not as wide as this, a vector of a CPU, torch's softmax takes number by
number."""


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


class _Scores(torch.autograd.Function):
    """softmax(q k^T) v within groups, in fp32: fewer passes over small matrices than torch's own.

    Rows are arranged as the groups take them: [heads of each sequence, its rows, width].
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        groups: Sequence[tuple[slice, slice, int, Tensor | None]],
        scaling: float,
        masks: Sequence[Tensor | None],
    ) -> Tensor:
        query, output = query * scaling, torch.empty_like(query)
        saved: list[Tensor] = []
        for (rows, slots, count, hidden), mask in zip(groups, masks, strict=True):
            q, k, v = (
                part[span].view(count, -1, part.shape[-1])
                for part, span in ((query, rows), (key, slots), (value, slots))
            )
            scores = torch.bmm(q, k.transpose(1, 2))
            if hidden is not None:
                scores.view(*hidden.shape[:1], -1, *scores.shape[1:]).masked_fill_(
                    hidden, -math.inf
                )
            shares = _softmax(scores)
            dropped = shares if mask is None else shares * mask
            torch.bmm(dropped, v, out=output[rows].view(count, -1, output.shape[-1]))
            saved += [shares, dropped]
        kept = [mask for mask in masks if mask is not None]
        ctx.save_for_backward(query, key, value, *saved, *kept)
        ctx.groups, ctx.scaling, ctx.dropped = groups, scaling, bool(kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        of_query, of_key, of_value = map(torch.empty_like, (query, key, value))
        for number, (rows, slots, count, _) in enumerate(ctx.groups):
            shares, dropped = saved[2 * number : 2 * number + 2]

            def part(whole: Tensor, span: slice, count: int = count) -> Tensor:
                return whole[span].view(count, -1, whole.shape[-1])

            own = part(gradients[0], rows)
            torch.bmm(dropped.transpose(1, 2), own, out=part(of_value, slots))
            of_shares = torch.bmm(own, part(value, slots).transpose(1, 2))
            if ctx.dropped:
                of_shares.mul_(saved[2 * len(ctx.groups) + number])
            of_scores = _softmax_backward(of_shares, shares)
            torch.bmm(of_scores, part(key, slots), out=part(of_query, rows))
            torch.bmm(of_scores.transpose(1, 2), part(query, rows), out=part(of_key, slots))
        return of_query.mul_(ctx.scaling), of_key, of_value, None, None, None


def _softmax(scores: Tensor) -> Tensor:
    """[..., width], over the width; narrow scores are overwritten."""
    if scores.shape[-1] >= NARROW:
        return torch.softmax(scores, -1)
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def _softmax_backward(gradient: Tensor, shares: Tensor) -> Tensor:
    """The gradient of the scores, given the shares that they came to and those shares' gradient."""
    if shares.shape[-1] >= NARROW:
        return torch.ops.aten._softmax_backward_data(gradient, shares, -1, torch.float32)
    product = gradient * shares
    return product.addcmul_(shares, product.sum(-1, keepdim=True), value=-1)


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
        query: [1, heads, tokens, width], or [1, heads, sequences, width]: one token of each, which
            in a causal model is its last.
        key: [1, heads or fewer, tokens, width], and so is value.
        attention_mask: not needed, the layout says it all.
        flat_layout: of this batch.
        scaling: of the scores; None is 1 / sqrt(width).
        dropout: probability for the attention weights.

    Returns:
        [1, tokens or sequences, heads, width], and no weights.
    """
    given = query.dtype
    if flat_layout.noted is not None:
        flat_layout.noted[module] = key[0], value[0]
    q, k, v = (rows[0].transpose(0, 1) for rows in (query, key, value))
    one_each = len(q) != len(k)
    asked = _Asked(
        where=flat_layout,
        one_each=one_each,
        causal=bool(getattr(module, "is_causal", False)) and not one_each,
        scaling=scaling,
        dropout=dropout,
        place=int(getattr(module, "dropout_place", 0)),
        front=flat_layout.fronts.get(module),
    )
    if q.is_cuda and given in (torch.bfloat16, torch.float16) and dropout == 0:
        return _any_length(q, k, v, asked).unsqueeze(0), None
    short = not q.is_cuda and (dropout > 0 or flat_layout.longest <= SHORT) and not asked.front
    with torch.autocast(q.device.type, enabled=False):
        output = (_short if short else _grouped)(q, k, v, asked)
    return output.to(given).unsqueeze(0), None


@dataclass(frozen=True)
class _Asked:
    """What attention is to do with query, key and value [rows, heads, width]."""

    where: Layout
    one_each: bool
    """Queries are one of each sequence."""
    causal: bool
    scaling: float | None
    dropout: float
    place: int
    """In the model, for dropout."""
    front: Sequence[tuple[Tensor, Tensor]] | None = None
    """Each run's keys and values in front of its sequences."""


def _short(query: Tensor, key: Tensor, value: Tensor, asked: _Asked) -> Tensor:
    """On a CPU, where small matrices are worth fewer passes; bf16 is slow and inexact there."""
    slots, heads, width = asked.where.arranged, query.shape[1], query.shape[2]
    if heads != key.shape[1]:
        key, value = (rows.repeat_interleave(heads // rows.shape[1], 1) for rows in (key, value))
    there, back = slots.heads(heads, asked.one_each)
    of_keys = slots.heads(heads, False)
    q, k, v = (
        _Rearrange.apply(rows.reshape(-1, width), *index, None).float()
        for rows, index in ((query, (there, back)), (key, of_keys), (value, of_keys))
    )
    groups: list[tuple[slice, slice, int, Tensor | None]] = []
    masks: list[Tensor | None] = []
    for group in slots.groups:
        n = group.sequences.stop - group.sequences.start
        queries = group.sequences if asked.one_each else group.slots
        rows, columns = (
            slice(span.start * heads, span.stop * heads) for span in (queries, group.slots)
        )
        hidden = None if group.mask is None else ~group.mask
        if asked.causal:  # padding is last: nothing looks ahead at it
            ahead = torch.ones(group.length, group.length, dtype=torch.bool).triu_(1)
            hidden = ahead.expand(n, 1, -1, -1)
        groups.append((rows, columns, n * heads, hidden))
        mask = None
        if asked.dropout > 0:
            shape = (n * heads, 1 if asked.one_each else group.length, group.length)
            like = q.new_empty(()).expand(shape)
            place = asked.place + group.number
            mask = dropping.current().mask(group.run, place, like, asked.dropout)
        masks.append(mask)
    scale = width**-0.5 if asked.scaling is None else asked.scaling
    output = _Scores.apply(q, k, v, groups, scale, masks)
    real = None if asked.one_each or slots.real is None else slots.real_rows(heads)
    return _Rearrange.apply(output, back, there, real).view(-1, heads, width)


def _grouped(query: Tensor, key: Tensor, value: Tensor, asked: _Asked) -> Tensor:
    """Group by group through torch's own attention."""
    slots = asked.where.arranged
    # bf16 attention is slow on CPUs; it is a small share of the work, so do it exactly.
    if query.dtype == torch.bfloat16 and not query.is_cuda:
        query, key, value = query.float(), key.float(), value.float()
    of_keys = slots.slots, slots.tokens
    there, back = (slots.order, slots.back) if asked.one_each else of_keys
    q = _Rearrange.apply(query, there, back, None)
    k, v = (_Rearrange.apply(rows, *of_keys, None) for rows in (key, value))
    outputs = []
    for group in slots.groups:
        queries = group.sequences if asked.one_each else group.slots
        shape = (group.sequences.stop - group.sequences.start, -1)
        spans = (queries, group.slots, group.slots)
        if asked.dropout > 0:
            torch.manual_seed(dropping.current().seed(group.run, asked.place + group.number))
        taken = [
            rows[span].unflatten(0, shape).transpose(1, 2)
            for rows, span in zip((q, k, v), spans, strict=True)
        ]
        mask = None if asked.causal else group.mask  # padding is last
        if asked.front is not None:
            front = asked.front[group.run]
            taken[1:] = (
                torch.cat([part.to(own.dtype).expand(shape[0], -1, -1, -1), own], 2)
                for part, own in zip(front, taken[1:], strict=True)
            )
            mask = _with_front(group, asked, front[0].shape[1])
        result = F.scaled_dot_product_attention(
            *taken,
            attn_mask=mask,
            dropout_p=asked.dropout,
            is_causal=asked.causal and asked.front is None,
            scale=asked.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(result.transpose(1, 2).flatten(0, 1))
    real = None if asked.one_each else slots.real
    return _Rearrange.apply(torch.cat(outputs), back, there, real)


def _with_front(group: Group, asked: _Asked, front: int) -> Tensor | None:
    """bool, [queries, keys] or [sequences, 1, 1, keys]: what a group sees, the front included."""
    if asked.causal:
        device = asked.where.positions.device
        square = torch.ones(group.length, front + group.length, dtype=torch.bool, device=device)
        return square.tril_(front)
    return None if group.mask is None else F.pad(group.mask, (front, 0), value=True)


def _any_length(query: Tensor, key: Tensor, value: Tensor, asked: _Asked) -> Tensor:
    """Flash attention over sequences as they lie: no arranging, no padding."""
    from torch.nn.attention.varlen import varlen_attn

    where = asked.where
    ends, longest = where.ends, where.longest
    if asked.one_each:
        ends, longest = torch.arange(len(where.ends), dtype=torch.int32, device=key.device), 1
    seen = where
    if asked.front is not None:
        index, seen = where.lengthened([front.shape[1] for front, _ in asked.front])
        key, value = (
            torch.cat([*(part.transpose(0, 1).to(own.dtype) for part in fronts), own]).index_select(
                0, index
            )
            for fronts, own in zip(zip(*asked.front, strict=True), (key, value), strict=True)
        )
    result = varlen_attn(
        query,
        key,
        value,
        ends,
        seen.ends,
        longest,
        seen.longest,
        scale=asked.scaling,
        window_size=(-1, 0) if asked.causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(result, Tensor)
    return result


def _no_mask(*arguments: Any, **keywords: Any) -> None:
    """The mask function that goes with `attention`: the layout takes the mask's place."""


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
