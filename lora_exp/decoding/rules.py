"""What each next token may be: from the model's logits to log probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lora_exp.decoding.options import Decoding


def log_probabilities(logits: Tensor, tokens: Tensor, options: Decoding) -> Tensor:
    """Apply the rules in the reference's order, then normalise over what is left.

    Args:
        logits: [..., vocabulary], of the model; not changed.
        tokens: [..., length], generated so far.
        options: those of sampling count only where `options.sample`.

    Returns:
        [..., vocabulary], in fp32 or better; -inf for what must not come next.
    """
    # A copy, since the rules write in place; fp32, since bf16 cannot tell near hypotheses apart.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    length = tokens.shape[-1]
    if options.repetition_penalty != 1 and length:
        _penalise_repetition(logits, tokens, options.repetition_penalty)
    if length < options.min_length:
        logits[..., list(options.eos_ids)] = -torch.inf
    if options.banned_ids:
        logits[..., list(options.banned_ids)] = -torch.inf
    if 0 < options.no_repeat_ngram <= length:
        _ban_repeated_ngrams(logits, tokens, options.no_repeat_ngram)
    if options.sample:
        logits = _truncate(logits / options.temperature, options.top_k, options.top_p)
    # Rounding may put a certain token above 0; the search relies on sums that never rise.
    return logits.log_softmax(-1).clamp_(max=0)


def _penalise_repetition(logits: Tensor, tokens: Tensor, penalty: float) -> None:
    """CTRL's penalty (Keskar et al. 2019), once for each distinct token, in place."""
    repeated = logits.gather(-1, tokens)
    logits.scatter_(-1, tokens, torch.where(repeated < 0, repeated * penalty, repeated / penalty))


def _ban_repeated_ngrams(logits: Tensor, tokens: Tensor, size: int) -> None:
    """-inf, in place, for what would complete an n-gram that is already there."""
    ngrams = tokens.unfold(-1, size, 1)  # [..., n-grams, size]
    begun = tokens[..., None, tokens.shape[-1] - size + 1 :]  # [..., 1, size - 1]
    repeats = (ngrams[..., :-1] == begun).all(-1)
    # Added, so that a token which several n-grams name is banned if any of them matches.
    ban = torch.zeros_like(repeats, dtype=logits.dtype).masked_fill_(repeats, -torch.inf)
    logits.scatter_add_(-1, ngrams[..., -1], ban)


def _truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Only the most probable tokens, the most probable one in any case."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        probability, order = logits.softmax(-1).sort(-1, descending=True)
        # A token stays if those before it do not have the probability yet.
        dropped = probability.cumsum(-1) - probability >= top_p
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits
