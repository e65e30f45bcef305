"""BLEU and chrF++, through sacrebleu."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, Literal

from lora_exp.tasks.scores.corpus import Corpus


def bleu(
    corpus: Corpus, *, lowercase: bool = False, smoothing: Literal["exp", "none"] = "exp"
) -> float:
    """BLEU (Papineni et al. 2002) of a corpus, tokenised as mteval-v13a; 1 is perfect.

    Args:
        corpus: with the tokens as they come, or the text itself.
        lowercase: whether case counts not.
        smoothing: sacrebleu's own for n-grams of which none matches, or `none`: then BLEU is 0,
            as the benchmarks' scripts have it.
    """
    from sacrebleu.metrics.bleu import BLEU

    # Texts that are tokenised on purpose are no mistake here.
    metric = BLEU(lowercase=lowercase, smooth_method=smoothing, force=True)
    return metric.corpus_score(corpus.outputs, _streams(corpus)).score / 100


def chrf(corpus: Corpus) -> float:
    """chrF++ (Popović 2017), smoothed as Popović's chrF++.py; 1 is perfect."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(word_order=2, eps_smoothing=True)
    return metric.corpus_score(corpus.outputs, _streams(corpus)).score / 100


def _streams(corpus: Corpus) -> Any:
    """References as sacrebleu takes them: the first of each source, the second of each, ...

    None stands where a source has no more: sacrebleu's annotation lacks it, its code has it.
    """
    return list(zip_longest(*corpus.references))
