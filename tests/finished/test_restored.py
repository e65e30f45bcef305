"""`lora_exp.load`: a run's model, ready to be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from learned import CLASSES, PAIRS, TEXTS, Learned
from safetensors.torch import load_file, save_file
from torch import Tensor

import lora_exp
from lora_exp.errors import UserError
from lora_exp.lora import lora_layers
from lora_exp.runs import predictions


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return Learned(tmp_path_factory.mktemp("learned"))


@torch.no_grad()
def logits(tokenizer: Any, model: Any) -> Tensor:
    """Of the validation split, as anybody would compute them: padded."""
    return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        lora_exp.load(*arguments, **options)
    return str(caught.value)


VARIANTS = {
    "lora": ("bert", "method=lora"),
    "lora of a decoder": ("gpt2", r"lora.placement.rank_pattern={c_attn\:value:2}"),
    "PiSSA": ("bert", "lora.init=pissa", "lora.r=4"),
    "full": ("roberta", "method=full"),
    "full_top": ("bert", "method=full_top", "full_top.layers=1"),
    "bitfit": ("bert", "method=bitfit"),
    "adapter": ("bert", "method=adapter"),
    "prefix": ("bert", "method=prefix"),
    "prompt": ("bert", "method=prompt"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_says_what_the_run_said(variant: str, learned: Learned) -> None:
    run = learned.rating(*VARIANTS[variant])
    tokenizer, model = lora_exp.load(run)
    assert not model.training
    said = predictions.read(run / "predictions")["validation"].predictions
    assert max(said) - min(said) > 1e-3
    found = logits(tokenizer, model)
    torch.testing.assert_close(found.squeeze(-1), torch.tensor(said), rtol=1e-4, atol=1e-4)

    merged = lora_exp.load(run, merge=True)[1]
    assert all(layer.merged for _, layer in lora_layers(merged))
    torch.testing.assert_close(logits(tokenizer, merged), found, rtol=1e-4, atol=1e-4)


def test_classes_have_their_names(learned: Learned) -> None:
    run = learned.classifying("bert")
    tokenizer, model = lora_exp.load(run)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: number for number, name in enumerate(CLASSES)}
    said = predictions.read(run / "predictions")["validation"].predictions
    assert len({*said}) > 1
    assert logits(tokenizer, model).argmax(-1).tolist() == said


@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
def test_a_language_model_continues_texts(method: str, learned: Learned) -> None:
    run = learned.writing(f"method={method}", "decoding.beam_size=1", "decoding.no_repeat_ngram=0")
    loaded: tuple[Any, Any] = lora_exp.load(run)
    tokenizer, model = loaded
    written = [json.loads(line) for line in (run / "generations/test.jsonl").open()]
    assert [one["source"] for one in written] == [source for source, _ in PAIRS]
    assert any(one["output"] for one in written)
    for one in written[:3]:
        ids = tokenizer(one["source"] + tokenizer.eos_token, return_tensors="pt")
        found = model.generate(**ids, max_new_tokens=12, min_new_tokens=4, do_sample=False)
        text = tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text.strip() == one["output"]


def test_forms_of_a_run(learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = learned.rating("bert", "method=lora")
    expected = logits(*lora_exp.load(run))
    copied = shutil.copytree(run, tmp_path / "elsewhere" / "mine")
    monkeypatch.chdir(run.parents[2])
    for form, outputs in (
        (run.name, run.parents[1]),
        (run.name.rpartition("-")[2][:6], run.parents[1]),
        (str(copied), "nowhere"),
    ):
        assert torch.equal(logits(*lora_exp.load(form, outputs=outputs)), expected)


def test_a_backbone_that_is_elsewhere(learned: Learned, tmp_path: Path) -> None:
    moved = shutil.copytree(learned.model("bert"), tmp_path / "moved")
    for method in ("lora", "adapter"):
        run = learned.rating("bert", f"method={method}")
        expected = logits(*lora_exp.load(run))
        copied = shutil.copytree(run, tmp_path / method)
        config = copied / "config.yaml"
        config.write_text(config.read_text().replace(str(learned.model("bert")), "/no/such/bert"))
        text = refused(copied)
        assert "model.name_or_path=/no/such/bert: there is no such folder." in text
        assert "--backbone DIR, or backbone=DIR in Python" in text
        assert torch.equal(logits(*lora_exp.load(copied, backbone=moved)), expected)


def test_another_backbone_is_refused(learned: Learned, tmp_path: Path) -> None:
    other = shutil.copytree(learned.model("bert"), tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: w + 1 for name, w in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    for method in ("lora", "adapter"):
        run = learned.rating("bert", f"method={method}")
        text = refused(run, backbone=other)
        assert f"{run}: was trained on a backbone whose weights are not those of {other}." in text


def test_runs_that_cannot_be_loaded(learned: Learned, tmp_path: Path) -> None:
    run = learned.rating("bert", "method=lora")
    name = run.name
    assert f"Did you mean {name}?" in refused(name[:-1] + "x", outputs=run.parents[1])
    copied = shutil.copytree(run, tmp_path / name)
    (copied / "result.json").unlink()
    text = refused(copied)
    assert "this run is preempted, not done." in text
    assert "goes on with it: python -m lora_exp model.name_or_path=" in text
    (copied / "result.json").write_text((run / "result.json").read_text())
    (copied / "adapter/adapter_model.safetensors").write_bytes(b"no")
    assert "damaged" in refused(copied)
    shutil.rmtree(copied / "adapter")
    assert "there is no adapter_model.safetensors in it" in refused(copied)


def test_importing_lora_exp_is_cheap() -> None:
    code = "import sys, lora_exp; assert callable(lora_exp.load); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert not loaded & {"torch", "transformers", "hydra", "omegaconf", "numpy"}
