"""Each metric on cases that can be worked out by hand, with one reference and with several."""

from __future__ import annotations

import math
import shutil

import pytest

from lora_exp.tasks.scores import captions, ngrams, nist, ter
from lora_exp.tasks.scores.corpus import Corpus


def one(output: str, *references: str) -> Corpus:
    return Corpus([output], [list(references)])


class TestBleu:
    def test_one_reference(self) -> None:
        """Precisions 4/5, 3/4, 2/3, 1/2; as long as the reference."""
        assert ngrams.bleu(one("a b c d e", "a b c d f")) == pytest.approx(0.2**0.25)

    def test_several_references(self) -> None:
        """The second makes the unigrams 5/5; a reference may lack where others have one."""
        corpus = Corpus(["a b c d e", "v w x y z"], [["a b c d f", "e"], ["v w x y z"]])
        precisions = (10 / 10) * (7 / 8) * (5 / 6) * (3 / 4)
        assert ngrams.bleu(corpus) == pytest.approx(precisions**0.25)

    def test_the_nearest_reference_decides_the_length(self) -> None:
        assert ngrams.bleu(one("a b c d", "a b c d e f")) == pytest.approx(math.exp(1 - 6 / 4))
        assert ngrams.bleu(one("a b c d", "a b c d e f", "x y z")) == pytest.approx(1)

    def test_case_and_punctuation(self) -> None:
        corpus = one("The Rice Boat, by the river.", "the rice boat , by the river .")
        assert ngrams.bleu(corpus, lowercase=True) == pytest.approx(1)
        assert ngrams.bleu(corpus) < 1

    def test_without_smoothing_nothing_is_nothing(self) -> None:
        corpus = one("a b c x", "a b c d")
        assert ngrams.bleu(corpus, smoothing="none") == 0
        assert ngrams.bleu(corpus) > 0.5


class TestNist:
    def test_one_reference(self) -> None:
        """a and b say one bit each, b after a says none; of two words and one pair."""
        assert nist.nist(one("a b", "a b")) == pytest.approx(1)

    def test_several_references(self) -> None:
        """Five words, a and c twice; b after a in one of two cases; 2.5 words are expected."""
        found = (math.log2(5 / 2) + math.log2(5)) / 2 + math.log2(2)
        penalty = math.exp(math.log(0.5) * (math.log(2 / 2.5) / math.log(1.5)) ** 2)
        assert nist.nist(one("A b", "a b", "a c c")) == pytest.approx(found * penalty)

    def test_references_vary_in_number(self) -> None:
        """Counts and lengths are summed over sources, lengths as each source's mean."""
        corpus = Corpus(["x", "y"], [["x", "z z"], ["y"]])
        found = (math.log2(4 / 1) + math.log2(4 / 1)) / 2
        penalty = math.exp(math.log(0.5) * (math.log(2 / 2.5) / math.log(1.5)) ** 2)
        assert nist.nist(corpus) == pytest.approx(found * penalty)

    def test_two_thirds_of_the_length_halve_it(self) -> None:
        full = nist.nist(one("a b c", "a b c"))
        assert nist.nist(one("a b", "a b c")) == pytest.approx(full / 2)

    def test_an_n_gram_counts_as_often_as_in_one_reference(self) -> None:
        """Both references say a once: the second a of the output is no match."""
        assert nist.nist(one("a a", "a b", "a c")) == pytest.approx(math.log2(4 / 2) / 2)

    def test_nothing_said(self) -> None:
        assert nist.nist(one("", "a b")) == 0


class TestTer:
    def test_the_example_of_its_paper(self) -> None:
        """A shift, two substitutions and an insertion for thirteen words (Snover et al. 2006)."""
        reference = (
            "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times"
        )
        output = "THIS WEEK THE SAUDIS denied information published in the new york times"
        assert ter.ter(one(output, reference)) == pytest.approx(4 / 13)

    @pytest.mark.parametrize(
        ("output", "reference", "edits"),
        [
            ("a b c", "a b c", 0),
            ("a b", "a b c", 1),
            ("a b c d", "a b c", 1),
            ("a x c", "a b c", 1),
            ("c d a b", "a b c d", 1),
            ("b a d c", "a b c d", 2),
            ("", "a b c", 3),
        ],
    )
    def test_edits(self, output: str, reference: str, edits: int) -> None:
        assert ter.ter(one(output, reference)) == pytest.approx(edits / len(reference.split()))

    def test_the_nearest_reference_of_each_source_and_their_mean(self) -> None:
        corpus = Corpus(["a b c d", "x"], [["a b", "a b c", "z z z"], ["y y"]])
        assert ter.ter(corpus) == pytest.approx((1 / 3 + 2 / 2) / 2)

    def test_an_empty_reference(self) -> None:
        assert ter.ter(one("a b", "")) == 1

    def test_distances_of_long_texts(self) -> None:
        """More words than a machine word has bits."""
        words = [str(i) for i in range(150)]
        changed = ["new", *words[:70], *words[72:], "end"]
        assert ter.edit_rate(changed, words) == pytest.approx(4 / 150)


class TestChrf:
    def test_one_reference(self) -> None:
        """Of eight orders (six of characters, two of words) three exist, and match."""
        assert ngrams.chrf(one("ab", "ab")) == pytest.approx(3 / 8)
        assert ngrams.chrf(one("abcdef gh", "abcdef gh")) == pytest.approx(1)

    def test_recall_counts_twice(self) -> None:
        """Characters: precision 1, recall 1/2, F2 = 5/9; no word in common."""
        assert ngrams.chrf(one("a", "ab")) == pytest.approx(5 / 9 / 8)

    def test_the_best_of_several_references(self) -> None:
        assert ngrams.chrf(one("ab", "xy", "ab", "abc")) == pytest.approx(3 / 8)


class TestRougeL:
    def test_one_reference(self) -> None:
        """Three words in order: precision 3/4, recall 3/5."""
        precision, recall, beta = 3 / 4, 3 / 5, 1.2
        expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
        assert captions.rouge_l(one("a b c d", "a x c d y")) == pytest.approx(expected)

    def test_several_references(self) -> None:
        """The best precision and the best recall, of whichever reference; then the mean."""
        expected = (1 + 1.44) * (3 / 4) / (1 + 1.44 * (3 / 4))
        corpus = Corpus(["a b c d", "x"], [["a x c d y", "c"], ["y"]])
        assert captions.rouge_l(corpus) == pytest.approx(expected / 2)


class TestCider:
    def test_one_reference_each(self) -> None:
        """One- and two-grams are equal, and there are no longer ones."""
        corpus = Corpus(["a b", "c d"], [["a b"], ["c d"]])
        assert captions.cider(corpus) == pytest.approx(10 * 2 / 4)

    def test_several_references_are_averaged(self) -> None:
        corpus = Corpus(["a b", "c d"], [["a b", "x y"], ["c d"]])
        assert captions.cider(corpus) == pytest.approx((10 * 2 / 4 / 2 + 10 * 2 / 4) / 2)

    def test_what_every_source_says_is_worth_nothing(self) -> None:
        corpus = Corpus(["a", "a"], [["a"], ["a"]])
        assert captions.cider(corpus) == 0


class TestForms:
    def test_webnlg(self) -> None:
        corpus = Corpus(["Adolfo Suárez-Barajas (2.5)"], [["One", "Two"]]).webnlg
        assert corpus.outputs == ["adolfo suárez - barajas ( 2 . 5 )"]
        assert corpus.references == [["one", "two", "one", "one", "one", "one"]]

    def test_webnlg_keeps_six_references(self) -> None:
        corpus = Corpus(["x"], [list("abcdefgh")]).webnlg
        assert corpus.references == [list("abcdef")]

    def test_treebank(self) -> None:
        corpus = Corpus(["It cannot be, gonna."], [["a canno b"]]).treebank
        assert corpus.outputs == ["it can not be , gon na ."]
        assert corpus.references[0][0] == "a canno b"

    def test_texts_are_lines(self) -> None:
        assert one("a\u2028 b\n\nc ", "d\te").outputs == ["a b c"]

    @pytest.mark.parametrize(
        ("outputs", "references"), [([], []), (["a"], [[]]), (["a"], [["a"], ["b"]])]
    )
    def test_what_cannot_be_compared(self, outputs: list[str], references: list[list[str]]) -> None:
        with pytest.raises(ValueError, match="reference"):
            Corpus(outputs, references)


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_captions() -> None:
    corpus = Corpus(
        ["The Café isn't £30 (really).", "", "\x00\x1f"], [["Ok..."], ["A", "B c-d"], ["e"]]
    )
    assert corpus.captions.outputs == ["the café is n't # 30 -lrb- really -rrb-", "", ""]
    assert corpus.captions.references == [["ok"], ["a", "b c-d"], ["e"]]
