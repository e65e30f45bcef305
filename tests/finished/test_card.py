"""The verbs `card` and `push`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import hub
import peft
import pytest
from huggingface_hub import ModelCard
from learned import Learned
from transformers import AutoModelForSequenceClassification

import lora_exp
from lora_exp.finished import card
from lora_exp.runs import files
from lora_exp.runs.folder import RunFolder


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return Learned(tmp_path_factory.mktemp("learned"))


def make(run: Path) -> Any:
    ended = forked.run("card", str(run))
    assert ended.status == 0, ended.output
    return ModelCard.load(run / "adapter" / card.CARD)


def results(made: Any) -> set[tuple[Any, ...]]:
    assert made.data.eval_results is not None
    return {
        (one.metric_type, one.metric_value, one.dataset_type, one.dataset_split)
        for one in made.data.eval_results
    }


# -- card ------------------------------------------------------------------------------------------


def test_the_hub_reads_the_metadata(learned: Learned) -> None:
    run = learned.classifying("bert")
    folder = RunFolder(run)
    made = make(run)
    assert made.data.library_name == "peft"
    assert made.data.pipeline_tag == "text-classification"
    assert made.data.tags == ["lora_exp", "lora"]
    assert made.data.base_model is None, "a folder on this machine is none that others can load"
    metrics = (folder.result or {})["metrics"]
    assert results(made) == {("accuracy", metrics["accuracy"], "classification", "validation")}
    for said in (
        f"| accuracy | validation | {100 * metrics['accuracy']:.2f} |",
        "Classes: bad, good, so-so.",
        f"Content: `{folder.provenance['content']['data']}`",
        folder.provenance["command"],
        f"torch {folder.provenance['packages']['torch']}",
        "train.lr: 0.01",
        f'lora_exp.load("{run.name}")',
        'AutoModelForSequenceClassification.from_pretrained("BACKBONE", num_labels=3)',
        "`BACKBONE`: bert.",
        "lora.r: 8",
        "lora.placement.preset: qv",
        "train.epochs: 6",
    ):
        assert said in made.text, said
    assert folder.provenance["host"] not in made.text


def test_names_of_the_hub(learned: Learned, tmp_path: Path) -> None:
    """As a run has them whose data and backbone come from there."""
    run = learned.writing("decoding.beam_size=1", "decoding.examples=5")
    copied = tmp_path / run.name
    copied.mkdir()
    for name in ("run.json", "result.json"):
        (copied / name).write_bytes((run / name).read_bytes())
    config = (run / "config.yaml").read_text()
    for pattern, value in (
        (r"name_or_path: .*", "name_or_path: openai-community/gpt2"),
        (r"data_dir: .*", "data_dir: null"),
        (r"hub: null", "hub: somebody/pairs"),
        (r"test: null", "test: test"),
    ):
        config = re.sub(pattern, value, config, count=1)
    (copied / "config.yaml").write_text(config)
    (copied / "adapter").mkdir()
    (copied / "adapter" / "adapter_model.safetensors").touch()
    made = make(copied)
    assert made.data.base_model == "openai-community/gpt2"
    assert made.data.datasets == ["somebody/pairs"]
    assert made.data.pipeline_tag == "text-generation"
    splits = {(kind, split) for kind, _, name, split in results(made) if name == "somebody/pairs"}
    assert {("perplexity", "validation"), ("bleu", "test"), ("nist_mt", "test")} <= splits
    assert "https://huggingface.co/datasets/somebody/pairs" in made.text
    assert 'AutoModelForCausalLM.from_pretrained("openai-community/gpt2")' in made.text


def test_a_card_beside_an_adapter_changes_nothing(learned: Learned) -> None:
    run = learned.classifying("bert")
    make(run)
    base = AutoModelForSequenceClassification.from_pretrained(learned.model("bert"), num_labels=3)
    peft.PeftModel.from_pretrained(base, str(run / "adapter"))
    lora_exp.load(run)
    from lora_exp.init_from import fingerprint
    from lora_exp.runs.config import ModelConfig

    model = ModelConfig("x", init_from=str(run / "adapter"))
    with_card = fingerprint(model)
    (run / "adapter" / card.CARD).unlink()
    assert fingerprint(model) == with_card


def test_only_its_own_card_is_replaced(learned: Learned) -> None:
    run = learned.classifying("bert")
    make(run)
    file = run / "adapter" / card.CARD
    result = json.loads((run / "result.json").read_text())
    files.write_json(run / "result.json", result | {"best_epoch": 77.0})
    make(run)
    assert "epoch 77" in file.read_text()
    files.write_json(run / "result.json", result)
    edited = file.read_text().replace("## Data", "## My data")
    file.write_text(edited)
    ended = forked.run("card", str(run))
    assert ended.status == 2
    assert "was written or edited by a person, and stays as it is." in ended.output
    assert file.read_text() == edited
    file.unlink()


def test_methods_that_peft_does_not_open(learned: Learned) -> None:
    made = make(learned.classifying("bert", "method=bitfit"))
    assert made.data.library_name == "lora_exp"
    assert "peft" not in made.text.split("## Data")[0].split("## Use")[1]


# -- push ------------------------------------------------------------------------------------------


def push(endpoint: str, home: Path, run: Path, *more: str, **variables: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "lora_exp", "push", str(run), *more]
    environment = hub.environment(endpoint, home) | variables
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def test_push(learned: Learned, tmp_path: Path) -> None:
    run = learned.classifying("bert")
    (run / "adapter" / "notes.txt.tmp").write_text("not for others")
    with hub.serve(tmp_path / "hub") as endpoint:
        status, said = push(
            endpoint, tmp_path / "home", run, "me/mine", "--private", HF_TOKEN=hub.TOKEN
        )
        assert status == 0, said
        assert f"{endpoint}/me/mine" in said
        there = tmp_path / "hub" / "models" / "me" / "mine"
        names = {path.name for path in there.iterdir()}
        assert names == {
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            ".private",
        }
        for name in names - {".private"}:
            assert (there / name).read_bytes() == (run / "adapter" / name).read_bytes()
        pushed: Any = ModelCard.load(there / "README.md")
        assert pushed.data.library_name == "peft"
        assert hub.TOKEN not in said
        status, said = push(endpoint, tmp_path / "home", run, "me/mine", HF_TOKEN="wrong")
        assert status == 2
        assert "push: the hub did not take me/mine: " in said
        assert "wrong" not in said
    (run / "adapter" / "notes.txt.tmp").unlink()


def test_what_cannot_be_pushed(learned: Learned, tmp_path: Path) -> None:
    run, home = learned.classifying("bert"), tmp_path / "home"
    for endpoint, repo, token, expected in (
        (hub.nowhere(), "me/mine", "", "push: nobody is logged in to the hub."),
        (hub.nowhere(), "me/mine/x", hub.TOKEN, "Expected ORGANISATION/NAME."),
        (hub.nowhere(), "me/mine", hub.TOKEN, "cannot be reached"),
    ):
        status, said = push(endpoint, home, run, repo, HF_TOKEN=token)
        assert status == 2, said
        assert expected in said
        assert len(said.splitlines()) == 1
        assert hub.TOKEN not in said
