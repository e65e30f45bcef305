"""ROUGE-L and CIDEr as e2e-metrics computes them, through pycocoevalcap.

Both take texts in the tokens of `Corpus.captions`.
"""

from __future__ import annotations

from lora_exp.tasks.scores.corpus import Corpus


def rouge_l(corpus: Corpus) -> float:
    """ROUGE-L (Lin 2004) with beta 1.2, mean over the sources; 1 is perfect."""
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().compute_score(*_by_source(corpus))[0])


def cider(corpus: Corpus) -> float:
    """CIDEr-D (Vedantam et al. 2015), mean over the sources; up to 10, good outputs about 2.5."""
    from pycocoevalcap.cider.cider import Cider

    return float(Cider().compute_score(*_by_source(corpus))[0])


def _by_source(corpus: Corpus) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and outputs in the form of pycocoevalcap."""
    return dict(enumerate(corpus.references)), {i: [t] for i, t in enumerate(corpus.outputs)}
