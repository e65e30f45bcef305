"""How good generated text is: the metrics of each benchmark, each as the benchmark computes it.

    from lora_exp.tasks.scores import check, score
    check("e2e")                           # what will be missing, and why
    score("e2e", outputs, references)      # Scores(values={"bleu": 0.689, ...}, missing={})

What a benchmark's own script computes decides, except where it errs (GenerationEval's METEOR is -1
and its TER counts one line too many, both because the file ends with a newline).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from lora_exp.errors import UserError, nearest
from lora_exp.tasks.scores import captions, java, ngrams, nist, ter
from lora_exp.tasks.scores.corpus import Corpus

__all__ = ["LOWER_IS_BETTER", "Scores", "check", "metrics", "score"]

LOWER_IS_BETTER = frozenset({"ter"})


@dataclass(frozen=True)
class Scores:
    """What was measured, and what could not be."""

    values: dict[str, float]
    """By metric: fractions, 1 is perfect, but for TER (an error rate), NIST and CIDEr."""
    missing: dict[str, str]
    """By metric: why it has no value."""


@dataclass(frozen=True)
class _Metric:
    compute: Callable[[Corpus], float]
    packages: tuple[str, ...] = ()
    java: bool = False

    def lacking(self) -> str | None:
        """Why it cannot run here, or None."""
        for package in self.packages:
            if find_spec(package) is None:
                return f"needs the package {package}: pip install -e '.[text]'"
        return java.lacking() if self.java else None


_COCO = (("pycocoevalcap",), True)
_CAPTIONS = {
    "meteor": _Metric(lambda corpus: java.meteor(corpus.captions), *_COCO),
    "rouge_l": _Metric(lambda corpus: captions.rouge_l(corpus.captions), *_COCO),
    "cider": _Metric(lambda corpus: captions.cider(corpus.captions), *_COCO),
}
_WEBNLG = {
    "bleu": _Metric(lambda corpus: ngrams.bleu(corpus.webnlg, smoothing="none"), ("sacrebleu",)),
    "meteor": _Metric(lambda corpus: java.meteor(corpus.treebank), *_COCO),
    "ter": _Metric(lambda corpus: ter.ter(corpus.treebank)),
    "chrf++": _Metric(lambda corpus: ngrams.chrf(corpus.webnlg), ("sacrebleu",)),
}
_METRICS = {
    "e2e": {
        "bleu": _Metric(
            lambda corpus: ngrams.bleu(corpus, lowercase=True, smoothing="none"), ("sacrebleu",)
        ),
        "nist": _Metric(nist.nist, ("sacrebleu",)),
        **_CAPTIONS,
    },
    "webnlg": _WEBNLG,
    "dart": _WEBNLG,
    "generation": {
        "bleu": _Metric(ngrams.bleu, ("sacrebleu",)),
        "chrf++": _Metric(ngrams.chrf, ("sacrebleu",)),
        "nist": _Metric(nist.nist, ("sacrebleu",)),
        **_CAPTIONS,
    },
}


def metrics(kind: str) -> list[str]:
    """The metrics of a kind of task, in the order of its tables.

    Raises:
        UserError: for a kind without metrics of text.
    """
    return list(_of(kind))


def check(kind: str) -> dict[str, str]:
    """What `score` could not compute on this machine, and why; cheap enough to ask before a run.

    Raises:
        UserError: for a kind without metrics of text.
    """
    reasons = {name: metric.lacking() for name, metric in _of(kind).items()}
    return {name: reason for name, reason in reasons.items() if reason}


def score(kind: str, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Measure outputs against references.

    Args:
        kind: `e2e`, `webnlg`, `dart`, or `generation` for data of the user's own.
        outputs: the generated texts.
        references: as many lists of texts, each with at least one.

    Returns:
        Every metric of the kind, as a value or with the reason why it is missing.

    Raises:
        UserError: for a kind without metrics of text.
    """
    corpus = Corpus(list(outputs), [list(texts) for texts in references])
    values, missing = {}, check(kind)
    for name, metric in _of(kind).items():
        if name in missing:
            continue
        try:
            values[name] = metric.compute(corpus)
        except java.JavaFailed as error:
            missing[name] = str(error)
    return Scores(values, missing)


def _of(kind: str) -> dict[str, _Metric]:
    if kind not in _METRICS:
        raise UserError(f"No metrics for {kind!r}. {nearest(kind, _METRICS, kind='kinds')}")
    return _METRICS[kind]
