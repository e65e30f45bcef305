"""Generate text with a causal language model, batched, with a key-value cache.

from lora_exp.decoding import Decoding, decode
outputs = decode(model, prompts, Decoding(beam_size=10, length_penalty=0.9))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_exp.decoding.options import Decoding
from lora_exp.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Decoding", "decode"]


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    options: Decoding,
    progress: Callable[[int, int], None] | None = None,
    *,
    batch_size: int = 16,
) -> list[list[int]]:
    """Continue each prompt; a prompt that occurs several times is decoded once.

    Args:
        model: a causal language model of transformers, with one of its own attentions (sdpa or
            eager); put into evaluation mode meanwhile.
        prompts: token ids, of any lengths.
        options: what decides the outputs.
        progress: told the distinct prompts that are done, and how many there are.
        batch_size: prompts at once; decides the speed and the memory, not the outputs.

    Returns:
        For each prompt, in the order given, the generated tokens without the prompt; the last is
        an end token, unless `max_new_tokens` came first.

    Raises:
        UserError: for a prompt that is empty or longer than the model has positions for.
    """
    from lora_exp.decoding.search import search

    _check(model, prompts, options)
    # Prompts of like lengths side by side, the longest first: what does not fit fails at once.
    distinct = sorted({tuple(prompt) for prompt in prompts}, key=lambda p: (-len(p), p))
    outputs: dict[tuple[int, ...], list[int]] = {}
    done = 0

    def decided(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, len(distinct))

    training = model.training
    model.eval()
    try:
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            texts = search(model, [list(prompt) for prompt in batch], options, decided)
            outputs.update(zip(batch, texts, strict=True))
    finally:
        model.train(training)
    return [list(outputs[tuple(prompt)]) for prompt in prompts]


def _check(model: PreTrainedModel, prompts: Sequence[Sequence[int]], options: Decoding) -> None:
    config = model.config.get_text_config()
    # A sliding window would cut the tree that beams are; inside the window nothing is cut.
    limits = (getattr(config, n, None) for n in ("max_position_embeddings", "sliding_window"))
    most = min((limit for limit in limits if limit), default=None)
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {number + 1} is empty: there is nothing to continue.")
        needed = len(prompt) + options.max_new_tokens - 1  # the last token is not fed back
        if most is not None and needed > most:
            raise UserError(
                f"Prompt {number + 1} has {len(prompt)} tokens and decoding.max_new_tokens="
                f"{options.max_new_tokens}, but the model has positions for {most} tokens."
            )
    wrong = [i for i in (*options.eos_ids, *options.banned_ids) if not 0 <= i < config.vocab_size]
    if wrong:
        raise UserError(
            f"decoding.eos_ids and decoding.banned_ids: {wrong[0]} is not a token of the model, "
            f"which has {config.vocab_size}."
        )
