"""Outputs and their references, in the forms that the metrics read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

WEBNLG_REFERENCES = 6
"""References of each source in the files that microsoft/LoRA evaluates WebNLG and DART with."""


@dataclass(frozen=True)
class Corpus:
    """Outputs, one per source, and each source's references, at least one, of any number.

    White space is collapsed to single blanks: a text is a line.
    """

    outputs: list[str]
    references: list[list[str]]

    def __post_init__(self) -> None:
        if len(self.outputs) != len(self.references):
            raise ValueError(f"{len(self.outputs)} outputs, {len(self.references)} references")
        if not self.outputs or not all(self.references):
            raise ValueError("a score needs an output, and each output a reference")
        object.__setattr__(self, "outputs", [" ".join(text.split()) for text in self.outputs])
        lines = [[" ".join(text.split()) for text in texts] for texts in self.references]
        object.__setattr__(self, "references", lines)

    def each(self, change: Callable[[str], str]) -> Corpus:
        """The corpus with every text changed."""
        return Corpus(
            [change(text) for text in self.outputs],
            [[change(text) for text in texts] for texts in self.references],
        )

    @cached_property
    def webnlg(self) -> Corpus:
        r"""As microsoft/LoRA evaluates WebNLG and DART (`gpt2_decode.py --tokenize --lower`).

        Lower-cased, each character of `\W` a token of its own, exactly six references: the first
        six, or the first again where there are fewer.
        """
        six = [
            [*texts, *[texts[0]] * WEBNLG_REFERENCES][:WEBNLG_REFERENCES]
            for texts in self.references
        ]
        return Corpus(self.outputs, six).each(
            lambda text: " ".join(re.split(r"(\W)", text.lower()))
        )

    @cached_property
    def treebank(self) -> Corpus:
        """The `webnlg` form after NLTK's `word_tokenize`, as GenerationEval reads it.

        On text that stands in tokens already, that only splits these contractions. (It also writes
        quotation marks as two backticks, which makes no difference to what matches what.)
        """
        contracted = re.compile(r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
        return self.webnlg.each(
            lambda text: contracted.sub(lambda match: " ".join(filter(None, match.groups())), text)
        )

    @cached_property
    def captions(self) -> Corpus:
        """As e2e-metrics reads texts for METEOR, ROUGE-L and CIDEr: see `java.ptb_tokens`."""
        from lora_exp.tasks.scores.java import ptb_tokens

        lines = iter(ptb_tokens([*self.outputs, *(t for texts in self.references for t in texts)]))
        outputs = [next(lines) for _ in self.outputs]
        return Corpus(outputs, [[next(lines) for _ in texts] for texts in self.references])
