"""Through the model: the sequences of one run or of several, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_exp.methods.together import Own
from lora_exp.models import Backbone, first_position
from lora_exp.train import padded
from lora_exp.train.batches import Batch
from lora_exp.train.dropout import Draws, drawing, place_of
from lora_exp.train.families import family_of
from lora_exp.train.layout import Layout

ROUND = 32
"""Tokens, of which a pass in bf16 has a multiple on a CPU."""


@dataclass(frozen=True)
class Piece:
    """What one run has in a pass."""

    backbone: Backbone
    """Its own adapter and head around the frozen weights that all in the pass share."""
    batch: Batch
    """On the backbone's device."""
    stream: int = 0
    """Of random numbers for dropout."""
    own: Own | None = None
    """What is its own; None where no other run can be in the pass."""


@contextmanager
def forward(pieces: Sequence[Piece], precision: str) -> Iterator[list[Tensor]]:
    """Of each piece the logits [sequences, classes] or, of a language model, the hidden states
    [targets, hidden] that `vocabulary.cross_entropy` takes.

    The backward pass belongs in the context as well: gradient checkpointing computes forward again.

    Args:
        pieces: one, or several whose own modules have the same names.
        precision: `fp32` or `bf16`.
    """
    model = pieces[0].backbone.model
    lower = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")
    if pieces[0].own is None:  # what a lone run's layers draw themselves
        torch.manual_seed(pieces[0].stream)
    if family_of(model.config) is None:
        (piece,) = pieces
        with lower:
            text = piece.batch.reads is not None
            outputs = (padded.hidden if text else padded.logits)(model, piece.batch)
        yield [outputs]
        return
    batches = [_filled(piece.batch, precision) for piece in pieces]
    lengths = [length for batch in batches for length in batch.lengths]
    apart = model.training and _drops_attention(model)
    where = Layout(lengths, model.device, [len(batch.lengths) for batch in batches], apart)
    draws = Draws([piece.stream for piece in pieces], where.spans if len(pieces) > 1 else None)
    with _together(pieces, where.spans, draws):
        with lower:
            outputs = _flat(pieces, batches, where, draws)
        yield outputs


@contextmanager
def _together(
    pieces: Sequence[Piece], spans: Mapping[int, Sequence[slice]], draws: Draws
) -> Iterator[None]:
    """Within this context, the first piece's model computes for all, with what is their own."""
    own = [piece.own for piece in pieces if piece.own is not None]
    with ExitStack() as stack:
        stack.enter_context(drawing(draws))
        if own:
            modules = [one.modules for one in own]
            stack.enter_context(own[0].packed(modules, spans, _mask(draws)))
        yield


def _filled(batch: Batch, precision: str) -> Batch:
    """For bf16 on a CPU, with one more sequence, of which nothing is read, to a round number of
    tokens: there each new number costs the making of kernels for it."""
    ids, types = batch.input_ids, batch.token_types
    more = -len(ids) % ROUND
    if precision != "bf16" or ids.is_cuda or more == 0:
        return batch
    return replace(
        batch,
        input_ids=F.pad(ids, (0, more)),
        token_types=None if types is None else F.pad(types, (0, more)),
        lengths=[*batch.lengths, more],
    )


def _flat(
    pieces: Sequence[Piece], batches: Sequence[Batch], where: Layout, draws: Draws
) -> list[Tensor]:
    model = pieces[0].backbone.model
    family = family_of(model.config)
    assert family is not None
    inputs = {
        "input_ids": torch.cat([batch.input_ids for batch in batches])[None],
        "position_ids": (where.positions + first_position(model))[None],
    }
    types = [batch.token_types for batch in batches if batch.token_types is not None]
    if types:
        inputs["token_type_ids"] = torch.cat(types)[None]
    hidden = model.base_model(**inputs, flat_layout=where, use_cache=False).last_hidden_state[0]
    if batches[0].reads is not None:
        own = hidden.split([len(batch.input_ids) for batch in batches])
        return [
            rows.index_select(0, batch.reads)
            for rows, batch in zip(own, batches, strict=True)
            if batch.reads is not None
        ]
    sequences = [len(batch.lengths) for batch in batches]
    shortened = len(hidden) == sum(sequences)
    rows = hidden if shortened else hidden.index_select(0, family.read(where))
    logits = []
    for number, (piece, own) in enumerate(zip(pieces, rows.split(sequences), strict=True)):
        read = own[: len(piece.batch.lengths)]
        with _together([piece], {len(read): [slice(0, len(read))]}, draws.only(number)):
            logits.append(family.head(piece.backbone.model, read))
    return logits


def _drops_attention(model: torch.nn.Module) -> bool:
    config = model.config
    names = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
    return any(getattr(config, name, 0.0) for name in names)


def _mask(draws: Draws) -> Callable[[str, int, Tensor, float], Tensor]:
    def mask(name: str, number: int, like: Tensor, probability: float) -> Tensor:
        return draws.mask(number, place_of(f"{name}.lora_dropout"), like, probability)

    return mask
