"""A benchmark's metrics together: computed, or missing with a reason."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_exp.errors import UserError
from lora_exp.tasks import scores
from lora_exp.tasks.scores import java

OUTPUTS = [
    "Blue Spice is a coffee shop in the city centre.",
    "The Mill is a cheap pub by the river.",
]
REFERENCES = [
    ["A coffee shop in the city centre area called Blue Spice.", "Blue Spice is a coffee shop."],
    ["The Mill is a cheap pub by the river."],
]
NEED_JAVA = {"e2e": ["meteor", "rouge_l", "cider"], "webnlg": ["meteor"], "dart": ["meteor"]}


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    """Whether Java runs is asked once in a process; each test has its own PATH."""
    java.lacking.cache_clear()
    yield
    java.lacking.cache_clear()


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_every_metric_of_e2e() -> None:
    """METEOR too, worked out by hand; once, since it takes seconds to start."""
    assert scores.check("e2e") == {}
    references = [["blue sky", "red apple pie"], ["green pear"]]
    found = scores.score("e2e", ["Red apple.", ""], references)
    assert found.missing == {}
    assert list(found.values) == scores.metrics("e2e")
    # Two content words match, in one chunk, of three (nothing counts as a word) and of five;
    # alpha 0.85, beta 0.2, gamma 0.6 (Denkowski and Lavie 2014).
    precision, recall = 2 / 3, 2 / 5
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert found.values["meteor"] == pytest.approx(mean * (1 - 0.6 * (1 / 2) ** 0.2), abs=1e-6)


@pytest.mark.parametrize("kind", NEED_JAVA)
def test_without_java_the_rest_is_computed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = "needs Java: no `java` on PATH"
    assert scores.check(kind) == dict.fromkeys(NEED_JAVA[kind], reason)
    found = scores.score(kind, OUTPUTS, REFERENCES)
    assert found.missing == scores.check(kind)
    assert {*found.values, *found.missing} == {*scores.metrics(kind)}


def _fake_java(folder: Path, script: str) -> None:
    (folder / "java").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "java").chmod(0o755)


def test_java_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`java -version` fails" in scores.check("dart")["meteor"]


def test_java_that_fails_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, '[ "$1" = -version ] && exit 0; echo no memory >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert scores.check("webnlg") == {}
    assert scores.score("webnlg", OUTPUTS, REFERENCES).missing == {
        "meteor": "METEOR failed: no memory"
    }
    missing = scores.score("e2e", OUTPUTS, REFERENCES).missing
    assert missing == dict.fromkeys(NEED_JAVA["e2e"], "the tokenizer failed: no memory")


def test_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    missing = scores.check("webnlg")
    assert missing["bleu"] == "needs the package sacrebleu: pip install -e '.[text]'"
    assert "chrf++" in missing
    assert "ter" not in missing


def test_a_kind_without_metrics() -> None:
    with pytest.raises(UserError, match=r"No metrics for 'webnlp'\. Did you mean webnlg"):
        scores.check("webnlp")
