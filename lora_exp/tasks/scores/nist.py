"""NIST (Doddington 2002), as the Python form in e2e-metrics computes it.

The Perl form, mteval-v13a.pl, differs where sources have different numbers of references.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from lora_exp.tasks.scores.corpus import Corpus

ORDER = 5
"""The longest n-grams that count."""
BETA = -math.log(0.5) / math.log(1.5) ** 2
"""Makes the length penalty 0.5 for outputs two thirds as long as the references."""


def nist(corpus: Corpus) -> float:
    """The information of the n-grams that outputs share with references, for each n-gram of them.

    Case does not count. An n-gram's information, in bits, is how much its last word says after
    the others: log2(count of the n-gram without it / count of the n-gram), over all references.

    Args:
        corpus: untokenised; tokenised here as mteval-v13a does.

    Returns:
        0 or more; about 8.6 for good outputs on E2E.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    words = corpus.each(lambda text: tokenizer(text).lower())
    outputs = [text.split() for text in words.outputs]
    references = [[text.split() for text in texts] for texts in words.references]

    occurrences = Counter(
        ngram for texts in references for text in texts for ngram in _ngrams(text)
    )
    # What comes before a single word is nothing, which occurs before every word.
    occurrences[()] = sum(len(text) for texts in references for text in texts)
    information, possible = [0.0] * (ORDER + 1), [0] * (ORDER + 1)
    for output, texts in zip(outputs, references, strict=True):
        found = Counter(_ngrams(output))
        for ngram, count in found.items():
            possible[len(ngram)] += count
        for ngram, count in (found & _most(texts)).items():
            bits = math.log2(occurrences[ngram[:-1]] / occurrences[ngram])
            information[len(ngram)] += count * bits
    score = sum(i / p for i, p in zip(information, possible, strict=True) if p)
    length = sum(map(len, outputs))
    expected = sum(sum(map(len, texts)) / len(texts) for texts in references)
    return score * _length_penalty(length, expected)


def _ngrams(words: list[str]) -> Iterator[tuple[str, ...]]:
    for n in range(1, ORDER + 1):
        yield from zip(*(words[i:] for i in range(n)), strict=False)


def _most(texts: Iterable[list[str]]) -> Counter[tuple[str, ...]]:
    """Each n-gram as often as in the text where it is most frequent."""
    most: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        most |= Counter(_ngrams(text))
    return most


def _length_penalty(length: int, expected: float) -> float:
    if length >= expected:
        return 1.0
    return math.exp(-BETA * math.log(length / expected) ** 2) if length else 0.0
