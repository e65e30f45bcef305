"""What decides a generated text, apart from the model and the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from lora_exp.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """Beam search as microsoft/LoRA's `examples/NLG/src/gpt2_beam.py` does it, or sampling.

    The defaults are those of its README for GPT-2 medium and E2E. Lengths and repetitions count
    generated tokens only, never the prompt.
    """

    beam_size: int = 10
    """Hypotheses kept for each source; 1 is greedy decoding."""
    length_penalty: float = 0.8
    """A hypothesis is worth its log probability / its length ** length_penalty."""
    no_repeat_ngram: int = 4
    """No n-gram of this size occurs twice; 0 allows it."""
    repetition_penalty: float = 1.0
    """Logits of generated tokens: divided by it where positive, multiplied where negative."""
    min_length: int = 0
    """Tokens before an end is allowed."""
    max_new_tokens: int = 64
    """Tokens after which a hypothesis ends, whatever it says."""
    eos_ids: tuple[int, ...] = (50256, 628)
    """Tokens that end a hypothesis: GPT-2's <|endoftext|>, and its blank line."""
    banned_ids: tuple[int, ...] = ()
    """Tokens never generated."""
    sample: bool = False
    """Draw each token instead of searching for the best text; needs beam_size=1."""
    temperature: float = 1.0
    """Sampling: logits are divided by it."""
    top_k: int = 0
    """Sampling: only the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Sampling: only the most probable tokens that together have this probability."""
    seed: int = 0
    """Sampling: what is drawn for a prompt depends on this and on the prompt, nothing else."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: naming the option, its value and what would be right.
        """
        for name, least in (
            ("beam_size", 1),
            ("no_repeat_ngram", 0),
            ("min_length", 0),
            ("max_new_tokens", 1),
            ("top_k", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"decoding.{name}={getattr(self, name)}: at least {least}.")
        for name in ("repetition_penalty", "temperature", "top_p"):
            if not getattr(self, name) > 0:
                raise UserError(f"decoding.{name}={getattr(self, name)}: greater than 0.")
        if self.top_p > 1:
            raise UserError(f"decoding.top_p={self.top_p}: a probability, at most 1.")
        if self.sample and self.beam_size != 1:
            raise UserError(
                f"decoding.sample draws one text: it needs decoding.beam_size=1, "
                f"not {self.beam_size}."
            )
