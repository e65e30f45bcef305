"""`compare`: what differs between runs, and whether it means anything."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from stores import Store

from lora_exp.report import examples
from lora_exp.report.texts import compare_bleu
from lora_exp.runs import files, predictions
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.predictions import Predictions
from lora_exp.tasks.metrics import measure
from lora_exp.tasks.scores import score

Capture = pytest.CaptureFixture[str]


def said(labels: list, answers: list, step: int = 9) -> Predictions:
    return Predictions("validation", step, labels, answers)


def rows(text: str, title: str) -> list[str]:
    """The lines of the table under a title."""
    part = text.split(f"{title}", 1)[1].split("\n\n")[0]
    return [re.sub(r"\s+", " ", line).strip() for line in part.splitlines()]


def done(store: Store, seed: int, accuracy: float, **config) -> RunFolder:
    run = store.run("done", metrics={"loss": 0.5, "accuracy": accuracy}, seed=seed, **config)
    result = json.loads((run.path / "result.json").read_text())
    files.write_json(run.path / "result.json", result | {"best_step": 9})
    return run


# -- what is kept ----------------------------------------------------------------------------------


def test_predictions_are_kept_compactly_and_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    classes = said([0, 1] * 5000, [1, 1] * 5000)
    predictions.write(folder, classes)
    assert predictions.read(folder) == {"validation": classes}
    file = folder / "validation.json.gz"
    assert file.stat().st_size < 1000
    before = file.read_bytes()
    predictions.write(folder, classes)
    assert file.read_bytes() == before, "no time in it"
    predictions.write(folder, said([3.8], [float(np.float32(3.81234567))]))
    assert json.loads(gzip.decompress(file.read_bytes()))["predictions"] == [3.81235]
    (folder / "other.json.gz").write_bytes(before[:-20])
    assert [*predictions.read(folder)] == ["validation"]
    assert predictions.read(tmp_path / "none") == {}


# -- tests over examples ---------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_metrics_of_classes_are_those_that_were_measured(metric: str) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200).tolist()
    one, other = (
        [x if generator.random() < right else 1 - x for x in labels] for right in (0.6, 0.9)
    )
    found = examples.tested(metric, said(labels, one), said(labels, other))
    expected = measure([metric], other, labels)[metric] - measure([metric], one, labels)[metric]
    assert found is not None
    assert found.difference == pytest.approx(expected)
    assert found.p < 0.01
    same = examples.tested(metric, said(labels, one), said(labels, one))
    assert same is not None
    assert same.p == 1


def test_matthews_of_three_classes_and_of_one() -> None:
    labels, one, other = [0, 1, 2, 2, 1, 0], [0, 1, 2, 1, 1, 0], [0] * 6
    found = examples.tested("matthews_correlation", said(labels, other), said(labels, one))
    assert found is not None
    assert found.difference == pytest.approx(
        measure(["matthews_correlation"], one, labels)["matthews_correlation"]
    )


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_metrics_of_numbers_are_those_that_were_measured(metric: str) -> None:
    generator = np.random.default_rng(0)
    labels = np.round(generator.uniform(0, 5, 300), 1)
    one, other = (labels + generator.normal(0, noise, 300) for noise in (3.0, 0.5))
    lists = [values.tolist() for values in (labels, one, other)]
    found = examples.tested(metric, said(lists[0], lists[1]), said(lists[0], lists[2]))
    expected = measure([metric], other, labels)[metric] - measure([metric], one, labels)[metric]
    assert found is not None
    assert found.difference == pytest.approx(expected)
    assert found.p == pytest.approx(0.001)
    assert "95% from +" in found.test


@pytest.mark.parametrize("corpus", ["e2e", "webnlg", "generation"])
def test_bleu_is_that_which_was_measured(corpus: str) -> None:
    words = [
        "the",
        "a",
        "pub",
        "inn",
        "near",
        "river",
        "cheap",
        "Food",
        ".",
        ",",
        "family-friendly",
    ]
    generator = np.random.default_rng(0)
    references = [[" ".join(generator.choice(words, 8)) for _ in range(3)] for _ in range(60)]
    outputs = {}
    for name, kept in (("one", 0.6), ("other", 0.9)):
        outputs[name] = [
            " ".join(w if generator.random() < kept else "x" for w in refs[0].split()[:7])
            for refs in references
        ]
    one, other = (
        {str(n): {"output": text, "references": references[n]} for n, text in enumerate(made)}
        for made in outputs.values()
    )
    found = compare_bleu(corpus, one, other)
    assert found is not None
    was = [score(corpus, made, references).values["bleu"] for made in outputs.values()]
    assert found.difference == pytest.approx(was[1] - was[0])
    assert found.p == pytest.approx(0.001)
    same = compare_bleu(corpus, one, one)
    assert same is not None
    assert same.p == 1


def test_a_loss_is_not_of_single_predictions() -> None:
    assert examples.tested("loss", said([0], [0]), said([0], [1])) is None


# -- the verb --------------------------------------------------------------------------------------


def test_what_differs(store: Store, capsys: Capture) -> None:
    one = done(store, 1, 0.8, lora__r=1)
    other = done(store, 2, 0.8, lora__r=16)
    for run, version in ((one, "2.12"), (other, "2.13")):
        origin = json.loads((run.path / "run.json").read_text())
        more = {"packages": {"torch": version, "numpy": "2"}, "git": {"commit": "a" * 40}}
        more["content"] = {"data": f"files:{run.signature[-1] * 64}", "backbone": "hub:x/tiny@main"}
        files.write_json(run.path / "run.json", origin | more)
    (other.path / "code.patch").write_text("diff")
    status, text = store.say(capsys, "compare", one.signature, other.signature)
    assert status == 0, text
    found = rows(text, "What differs\n")
    assert {"seed 1 2", "lora.r 1 16", "torch 2.12 2.13"} < {*found}
    assert f"content of data files:{'1' * 12} files:{'2' * 12}" in found
    assert any(line.startswith("uncommitted changes none ") for line in found)
    assert not any(
        line.startswith(("numpy", "code", "outputs", "content of backbone")) for line in found
    )


def test_the_same_config_with_other_content(store: Store, capsys: Capture) -> None:
    one, other = done(store, 1, 0.8, group="a"), done(store, 1, 0.8, group="b")
    text = store.say(capsys, "compare", one.name, other.name)[1]
    assert "A and B: same config, other content: of the data" in text


def test_curves_side_by_side(store: Store, capsys: Capture) -> None:
    one, other = done(store, 1, 0.8), done(store, 2, 0.8)
    for run, last in ((one, 30), (other, 3)):
        for epoch in range(1, last + 1):
            line = {"step": epoch, "epoch": float(epoch), "split": "validation"}
            run.append_metrics(line | {"loss": 1 / epoch, "accuracy": epoch / 100})
            run.append_metrics(line | {"split": "train", "loss": 9.0})
            run.append_metrics(line | {"split": "validation_mismatched", "accuracy": 0.99})
    found = rows(store.say(capsys, "compare", one.name, other.name)[1], "Learning curves on ")
    assert found[0] == "validation, 10 of 30 evaluations"
    assert found[1] == "epoch accuracy A accuracy B loss A loss B"
    assert found[3] == "1 1.00 1.00 1.0000 1.0000"
    assert found[-1] == "30 30.00 0.0333", "the other had ended"


def test_metrics_are_tested_over_examples_and_over_seeds(store: Store, capsys: Capture) -> None:
    groups = {}
    for r, values in ((1, (0.70, 0.71, 0.72)), (2, (0.80, 0.82, 0.81))):
        groups[r] = [done(store, n, value, lora__r=r) for n, value in enumerate(values, 1)]
    one, other = groups[1][0], groups[2][0]
    labels = [0, 1] * 20
    predictions.write(one.predictions, said(labels, [1] * 40))
    predictions.write(other.predictions, said(labels, labels))
    text = store.say(capsys, "compare", one.name, other.name)[1]
    (line,) = [one for one in rows(text, "Metrics\n") if one.startswith("accuracy")]
    assert line.startswith(
        "accuracy 70.00 80.00 +10.00 p < 0.001 (McNemar's exact test, 0 against 20) p = 0.0"
    )
    assert line.endswith("(3 seeds)")
    assert "A and B answer 20 of 40 examples of validation differently" in text
    assert "0 0 1 0" in rows(text, "examples of validation differently\n")
    assert "A alone is right in 0, B alone in 20." in text


def test_predictions_of_another_evaluation_are_not_used(store: Store, capsys: Capture) -> None:
    one, other = done(store, 1, 0.8), done(store, 2, 0.8)
    predictions.write(one.predictions, said([0, 1], [0, 1]))
    predictions.write(other.predictions, said([0, 1], [1, 1], step=12))
    assert "answer" not in store.say(capsys, "compare", one.name, other.name)[1]
    predictions.write(other.predictions, said([1, 1], [1, 1]))
    assert "answer" not in store.say(capsys, "compare", one.name, other.name)[1], "other data"


def test_texts_that_differ(store: Store, capsys: Capture) -> None:
    runs = [done(store, seed, 0.8) for seed in (1, 2, 3)]
    for run, output in zip(runs, ("[b]an inn", "a pub", "a pub"), strict=True):
        run.texts_file.parent.mkdir()
        lines = [
            {"source": "x | y", "output": output, "references": ["an inn", "a bar"]},
            {"source": "same", "output": "the same", "references": ["r"]},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        run.texts_file.write_text(text)
    text = store.say(capsys, "compare", *(run.name for run in runs))[1]
    found = rows(text, "A and B write 1 of 2 texts differently\n")
    assert "source x | y" in found
    assert "A [b]an inn" in found
    assert "B a pub" in found
    assert "the same" not in text
    assert "A and C write 1 of 2" in text


def test_mistakes(store: Store, capsys: Capture) -> None:
    run = done(store, 1, 0.8)
    for arguments, message in (
        ([run.name], "name two to 6 different runs"),
        ([run.name, run.signature], "name two to 6 different runs"),
        ([run.name, "nothing"], "nothing: no such run"),
    ):
        status, text = store.say(capsys, "compare", *arguments)
        assert status == 2
        assert message in text
