"""Search for, or draw, the text that continues each prompt of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from lora_exp.decoding.options import Decoding
from lora_exp.decoding.rules import log_probabilities
from lora_exp.decoding.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SHRINK = 0.75
"""Decided sources leave the batch when at most this share is undecided: leaving costs a copy."""


@dataclass
class _Beams:
    """Each undecided source's beams, and the best hypothesis that has ended; rows are sources."""

    source: Tensor  # [sources], the number in the batch
    score: Tensor  # [sources, beams], log probability; -inf for a beam that has ended
    tokens: Tensor  # [sources, beams, length]
    worth: Tensor  # [sources], of the best; -inf if none has ended
    best: Tensor  # [sources, max_new_tokens]
    length: Tensor  # [sources], of the best
    uniform: Tensor  # [sources, max_new_tokens], random numbers; empty if nothing is drawn

    def __getitem__(self, rows: Tensor) -> _Beams:
        return _Beams(*[getattr(self, field.name)[rows] for field in fields(self)])


@torch.inference_mode()
def search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    options: Decoding,
    decided: Callable[[int], None],
) -> list[list[int]]:
    """The best hypothesis for each prompt, or one drawn at random.

    The reference stops no search early; neither does this one until nothing can change its
    outcome: log probabilities only add up, so a source is decided once no beam could beat the
    best ended hypothesis even if all further tokens were certain.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompts: token ids, one list per source.
        options: all of them count.
        decided: told the number of sources, whenever some are decided.

    Returns:
        The generated tokens, the end token included where there is one.
    """
    tree = Tree(model, options.beam_size)
    logits = tree.plant(prompts)
    beams = _begin(prompts, logits, options)
    texts: list[list[int]] = [[] for _ in prompts]
    eos = torch.tensor(options.eos_ids, device=logits.device, dtype=torch.long)

    def finish(rows: _Beams) -> None:
        for source, best, length in zip(rows.source, rows.best, rows.length, strict=True):
            texts[int(source)] = best[: int(length)].tolist()
        if len(rows.source):
            decided(len(rows.source))

    for length in range(1, options.max_new_tokens + 1):
        log_p = log_probabilities(logits, beams.tokens, options)
        if options.sample:
            beams.score, parent, token = _draw(log_p, beams.score, beams.uniform[:, length - 1])
        else:
            beams.score, parent, token = _choose(log_p, beams.score, options.beam_size)
        before = beams.tokens.gather(1, parent[..., None].expand(-1, -1, length - 1))
        beams.tokens = torch.cat([before, token[..., None]], -1)
        last = length == options.max_new_tokens
        _end(beams, torch.isin(token, eos) | last, options.length_penalty)

        undecided = _could_improve(beams, length, options).nonzero()[:, 0]
        if len(undecided) == 0:
            break
        tree.follow(parent)
        if tree.full or len(undecided) <= SHRINK * len(token):
            done = torch.ones_like(beams.source, dtype=torch.bool)
            done[undecided] = False
            finish(beams[done])
            tree.compact(undecided)
            beams, token = beams[undecided], token[undecided]
        logits = tree.grow(token)
    finish(beams)
    return texts


def _begin(prompts: list[list[int]], logits: Tensor, options: Decoding) -> _Beams:
    """One beam per source, at its prompt."""
    sources, device = len(prompts), logits.device
    score = logits.new_zeros(sources, 1, dtype=torch.promote_types(logits.dtype, torch.float32))
    drawn = [_uniform(prompt, options) for prompt in prompts] if options.sample else []
    return _Beams(
        source=torch.arange(sources, device=device),
        score=score,
        tokens=torch.zeros(sources, 1, 0, dtype=torch.long, device=device),
        worth=score.new_full((sources,), -torch.inf),
        best=torch.zeros(sources, options.max_new_tokens, dtype=torch.long, device=device),
        length=torch.zeros(sources, dtype=torch.long, device=device),
        uniform=torch.stack(drawn).to(device) if drawn else score.new_empty(sources, 0),
    )


def _uniform(prompt: list[int], options: Decoding) -> Tensor:
    """[max_new_tokens] random numbers that belong to the prompt, whatever batch it is in."""
    digest = hashlib.sha256(repr((options.seed, prompt)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)


def _choose(log_p: Tensor, score: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `width` best continuations of each source: scores, parents, tokens, [sources, width]."""
    # The best over all beams are among the best of each.
    value, candidate = log_p.topk(min(width, log_p.shape[-1]), dim=-1)
    score, index = (score[..., None] + value).flatten(1).topk(width)
    return score, index // value.shape[-1], candidate.flatten(1).gather(1, index)


def _draw(log_p: Tensor, score: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A continuation of each source's one beam: scores, parents, tokens, [sources, 1]."""
    reached = log_p[:, 0].double().exp().cumsum(-1)
    token = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
    # A number that rounds to the last sum would point behind what has any probability.
    token = torch.minimum(token, (reached < reached[:, -1:]).sum(-1, keepdim=True))
    return score + log_p[:, 0].gather(-1, token), torch.zeros_like(token), token


def _end(beams: _Beams, ended: Tensor, length_penalty: float) -> None:
    """Keep the best of the hypotheses that end here; where beams have ended, nothing goes on.

    Args:
        ended: [sources, beams].
    """
    length = beams.tokens.shape[-1]
    worth = beams.score.masked_fill(~ended, -torch.inf) / length**length_penalty
    value, beam = worth.max(1)
    better = value > beams.worth
    text = beams.tokens[torch.arange(len(beam), device=beam.device), beam]
    beams.worth = torch.where(better, value, beams.worth)
    beams.length = beams.length.masked_fill(better, length)
    beams.best[:, :length] = torch.where(better[:, None], text, beams.best[:, :length])
    beams.score = beams.score.masked_fill(ended, -torch.inf)


def _could_improve(beams: _Beams, length: int, options: Decoding) -> Tensor:
    """[sources]: could a beam that goes on, at best, beat the best hypothesis?"""
    penalty = options.length_penalty
    kindest = max((length + 1) ** penalty, options.max_new_tokens**penalty)
    return beams.score.max(1).values / kindest > beams.worth
