"""Translation edit rate (Snover et al. 2006), as WebNLG's GenerationEval computes it, with pyter.

The rate is that of the nearest reference, and the corpus's is the mean over its sources; sacrebleu
counts edits over the whole corpus, and searches shifts otherwise, so its numbers are others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from lora_exp.tasks.scores.corpus import Corpus

Words = list[str]


def ter(corpus: Corpus) -> float:
    """Mean over the sources of the lowest rate over their references; 0 is perfect.

    Args:
        corpus: texts in tokens separated by blanks. A reference without tokens has rate 1.
    """
    rates = [
        _lowest(output.split(), [text.split() for text in dict.fromkeys(references)])
        for output, references in zip(corpus.outputs, corpus.references, strict=True)
    ]
    return sum(rates) / len(rates)


def _lowest(output: Words, references: list[Words]) -> float:
    """The lowest rate; references that cannot have it are not searched."""
    bounded = sorted((_at_least(output, reference), reference) for reference in references)
    lowest = float("inf")
    for bound, reference in bounded:
        if bound < lowest:
            lowest = min(lowest, edit_rate(output, reference))
    return lowest


def _at_least(output: Words, reference: Words) -> float:
    """A lower bound of the rate: words without a partner, wherever they are shifted."""
    if not reference:
        return 1.0
    partners = (Counter(output) & Counter(reference)).total()
    return (max(len(output), len(reference)) - partners) / len(reference)


def edit_rate(output: Words, reference: Words) -> float:
    """Insertions, deletions, substitutions and shifts, divided by the reference's length.

    Shifts are searched greedily: a phrase that also stands in the reference moves there, as long
    as that spares edits. Of shifts that spare as many, pyter takes the last in the order of words.
    """
    if not reference:
        return 1.0
    distance = _Distance(reference)
    edits, shifts = distance(output), 0
    while edits:
        candidates = {tuple(words) for words in _shifted(output, reference)}
        spared, best = max(((edits - distance(c), c) for c in candidates), default=(0, ()))
        if spared <= 0:
            break
        output, edits, shifts = list(best), edits - spared, shifts + 1
    return (shifts + edits) / len(reference)


def _shifted(output: Words, reference: Words) -> Iterator[Words]:
    """The output with one phrase moved to a place where the reference has it."""
    for start, word in enumerate(output):
        for target, other in enumerate(reference):
            if word != other or start == target:
                continue
            length = 1
            for own, its in zip(output[start + 1 :], reference[target + 1 :], strict=False):
                if own != its:
                    break
                length += 1
            phrase, rest = output[start : start + length], output[:start] + output[start + length :]
            yield rest[:target] + phrase + rest[target:]


class _Distance:
    """Levenshtein distance of words to one reference, bit by bit (Myers 1999, Hyyrö 2003)."""

    def __init__(self, reference: Words) -> None:
        self._length = len(reference)
        self._places: dict[str, int] = {}
        for place, word in enumerate(reference):
            self._places[word] = self._places.get(word, 0) | 1 << place

    def __call__(self, words: Sequence[str]) -> int:
        # A column of the table as two bit sets: where it rises by one, where it falls by one.
        mask, last = (1 << self._length) - 1, 1 << (self._length - 1)
        rises, falls, distance = mask, 0, self._length
        for word in words:
            equal = self._places.get(word, 0)
            diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
            right = falls | ~(diagonal | rises)
            left = rises & diagonal
            distance += bool(right & last) - bool(left & last)
            right = (right << 1 | 1) & mask
            rises = (left << 1 | ~(diagonal | right)) & mask
            falls = right & diagonal & mask
        return distance
