"""What two runs wrote for the same sources, and whether the BLEU of one is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lora_exp.report.examples import Tested
from lora_exp.report.significance import bootstrap
from lora_exp.runs import bounds
from lora_exp.runs.records import RunRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

Texts = Mapping[str, Mapping[str, Any]]
"""By source, the lines of `generations/test.jsonl`."""
ORDERS = 4
"""BLEU counts n-grams up to this."""


def generated(run: RunRecord) -> Texts:
    """What a run wrote for the test split; empty if nothing."""
    return {line["source"]: line for line in map(bounds.plain, run.folder.texts())}


def shared(first: Texts, second: Texts) -> list[str]:
    """The sources that both have a text for."""
    return [source for source in first if source in second]


def compare_bleu(corpus: str | None, first: Texts, second: Texts) -> Tested | None:
    """Paired bootstrap over sources of the difference in BLEU (Koehn 2004).

    Args:
        corpus: `task.corpus`, which decides how BLEU sees texts.
        first: of a run.
        second: of another.

    Returns:
        None where there are no sources that both have, or no sacrebleu.
    """
    sources = shared(first, second)
    if not sources or find_spec("sacrebleu") is None:
        return None
    import numpy as np

    one, other = (
        np.array([*_counts(corpus, [texts[source] for source in sources])], dtype=float)
        for texts in (first, second)
    )

    def difference(drawn: NDArray) -> NDArray:
        return _bleu(drawn @ other) - _bleu(drawn @ one)

    counts = [1] * len(sources)
    gap = float(difference(np.asarray([counts]))[0])
    low, high, p = bootstrap(difference, counts)
    return Tested(gap, p, f"paired bootstrap, 95% from {low:+.4f} to {high:+.4f}")


def _counts(corpus: str | None, lines: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
    """Of each text: its length, that of the nearest reference, n-grams that match, and n-grams."""
    from sacrebleu.metrics.bleu import BLEU

    from lora_exp.tasks.scores.corpus import Corpus

    texts = Corpus([line["output"] for line in lines], [[*line["references"]] for line in lines])
    if corpus in ("webnlg", "dart"):
        texts = texts.webnlg
    metric = BLEU(lowercase=corpus == "e2e", force=True, effective_order=True)
    for output, references in zip(texts.outputs, texts.references, strict=True):
        score = metric.sentence_score(output, references)
        yield [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _bleu(sums: NDArray) -> NDArray:
    """From the sums of counts, [resamples, 2 + 2 * ORDERS]; unsmoothed."""
    import numpy as np

    written, wanted = sums[:, 0], sums[:, 1]
    matching, all_of_them = sums[:, 2 : 2 + ORDERS], sums[:, 2 + ORDERS :]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(matching / all_of_them).mean(1)
        brevity = np.minimum(0.0, 1 - wanted / written)
        return np.nan_to_num(np.exp(logs + brevity))
