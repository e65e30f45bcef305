"""The verbs `export` and `import`: whom their files are for opens them, with equal outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import loralib
import peft
import pytest
import sklearn.metrics  # noqa: F401 (so that no child has to)
import tiny
import torch
from conftest import SHARED
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lora_exp import lora
from lora_exp.lora.files import CONFIG, WEIGHTS

SENTENCES = ["The pilot near the doctors waits.", "The doctors that the pilot likes wait."]
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny models by architecture."""
    root = tmp_path_factory.mktemp("models")

    def folder(architecture: str) -> Path:
        path = root / architecture
        own = {"conv_kernel_size": 3, "conv_act": "gelu"} if architecture == "deberta-v2" else {}
        return path if path.exists() else tiny.save(path, architecture, **own)

    return folder


@pytest.fixture(scope="module")
def runs(
    models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a run that has learned something, by architecture and overrides."""
    root = tmp_path_factory.mktemp("outputs")
    done: dict[tuple[str, ...], Path] = {}

    def run(architecture: str, *overrides: str) -> Path:
        key = (architecture, *overrides)
        if key not in done:
            outputs = root / str(len(done))
            ended = forked.run(
                f"model.name_or_path={models(architecture)}",
                f"outputs={outputs}",
                "train.max_steps=3",
                "train.lr=3e-2",
                *overrides,
            )
            assert ended.status == 0, ended.output
            done[key] = forked.folder_of(outputs)
        return done[key]

    return run


def export(run: Path, to: str, out: Path) -> forked.Ended:
    return forked.run("export", str(run), "--to", to, "--out", str(out))


def take_in(file: Path, model: Path | str, out: Path, *more: str) -> forked.Ended:
    return forked.run("import", str(file), "--model", str(model), "--out", str(out), *more)


def plain(model: Path, labels: int = 2) -> Any:
    made = AutoModelForSequenceClassification.from_pretrained(model, num_labels=labels)
    made.config.pad_token_id = 0
    return made


@torch.no_grad()
def logits(model: Any, folder: Path) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [model.eval()(**tokenizer(text, return_tensors="pt")).logits[0] for text in SENTENCES]
    return torch.stack(rows)


def by_peft(model: Path, adapter: Path, labels: int = 2) -> Tensor:
    opened = peft.PeftModel.from_pretrained(plain(model, labels), str(adapter))
    return logits(opened, model)


# -- export ----------------------------------------------------------------------------------------

VARIANTS = {
    "bert": ("bert",),
    "roberta": ("roberta",),
    "deberta-v2": ("deberta-v2", "lora/placement=all_linear"),
    "convolution": ("deberta-v2", 'lora.placement.targets=["conv.conv"]'),
    "gpt2": ("gpt2",),
    "rsLoRA, biases, dropout": ("bert", "lora.rslora=true", "lora.bias=all", "model.dropout=0.3"),
    "embedding": ("bert", "lora/placement=embedding"),
    "DoRA": ("bert", "lora.dora=true"),
    "PiSSA": ("bert", "lora.init=pissa", "lora.r=4"),
    "a head as it was": ("bert", "lora.train_head=false"),
    "ranks": ("gpt2", r"lora.placement.rank_pattern={c_attn\:value:2}"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_and_a_merged_model_give_equal_logits(
    variant: str, runs: Callable[..., Path], models: Callable[[str], Path], tmp_path: Path
) -> None:
    architecture, *overrides = VARIANTS[variant]
    run, model = runs(architecture, *overrides), models(architecture)
    expected = by_peft(model, run / "adapter")
    assert not torch.allclose(expected, logits(plain(model), model), atol=1e-3)

    ended = export(run, "peft", tmp_path / "peft")
    assert ended.status == 0, ended.output
    assert {file.name for file in (tmp_path / "peft").iterdir()} == {CONFIG, WEIGHTS}
    torch.testing.assert_close(by_peft(model, tmp_path / "peft"), expected)

    ended = export(run, "merged", tmp_path / "merged")
    assert ended.status == 0, ended.output
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, tmp_path / "merged"), expected)
    assert merged.config.id2label == {0: "unacceptable", 1: "acceptable"}
    reference = plain(model)
    assert type(merged) is type(reference)
    assert merged.state_dict().keys() == reference.state_dict().keys()
    for dropout in ("hidden_dropout_prob", "resid_pdrop"):
        assert getattr(merged.config, dropout, 0) == getattr(reference.config, dropout, 0)


def test_loralib_opens_what_is_exported_for_it(
    runs: Callable[..., Path], models: Callable[[str], Path], tmp_path: Path
) -> None:
    run, model = runs("gpt2"), models("gpt2")
    ended = export(run, "loralib", tmp_path / "out")
    assert ended.status == 0, ended.output
    assert "lora_alpha=16" in ended.output
    theirs = plain(model)
    for block in theirs.transformer.h:
        layer = loralib.MergedLinear(
            32, 96, r=8, lora_alpha=16, enable_lora=[True, False, True], fan_in_fan_out=True
        )
        layer.load_state_dict(block.attn.c_attn.state_dict(), strict=False)
        block.attn.c_attn = layer
    state = torch.load(tmp_path / "out" / "adapter.pt", weights_only=True)
    assert theirs.load_state_dict(state, strict=False).unexpected_keys == []
    torch.testing.assert_close(logits(theirs, model), by_peft(model, run / "adapter"))


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_what_stands_in_front_is_exported_for_peft(
    method: str, runs: Callable[..., Path], models: Callable[[str], Path], tmp_path: Path
) -> None:
    run = runs("bert", f"method={method}")
    ended = export(run, "peft", tmp_path / "out")
    assert ended.status == 0, ended.output
    assert torch.equal(
        by_peft(models("bert"), tmp_path / "out"), by_peft(models("bert"), run / "adapter")
    )
    assert "nothing is overwritten" in export(run, "peft", tmp_path / "out").output


@pytest.mark.parametrize("method", ["full", "full_top", "bitfit"])
def test_whole_tensors_are_exported_merged_and_only_so(
    method: str, runs: Callable[..., Path], models: Callable[[str], Path], tmp_path: Path
) -> None:
    run = runs("bert", f"method={method}")
    for form in ("peft", "loralib"):
        ended = export(run, form, tmp_path / "out")
        assert ended.status == 2
        assert f"--to {form}: a run with method={method} has no A and B" in ended.output
        assert not (tmp_path / "out").exists()
    ended = export(run, "merged", tmp_path / "out")
    assert ended.status == 0, ended.output
    expected = plain(models("bert"))
    expected.load_state_dict(load_file(run / "adapter" / WEIGHTS), strict=False)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    found = logits(merged, tmp_path / "out")
    assert torch.equal(found, logits(expected, models("bert")))


def test_label_names_are_those_of_the_data(tmp_path: Path, models: Callable[[str], Path]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = "".join(f"the pilot waits\t{label}\n" for label in ("so-so", "good", "bad"))
    for split in ("train", "dev"):
        (data / f"{split}.tsv").write_text("text\tlabel\n" + rows)
    ended = forked.run(
        "task=classification",
        f"task.data_dir={data}",
        "task.text=[text]",
        f"model.name_or_path={models('bert')}",
        f"outputs={tmp_path / 'outputs'}",
        "train.max_steps=1",
    )
    assert ended.status == 0, ended.output
    run = forked.folder_of(tmp_path / "outputs")
    shutil.rmtree(data)  # the run knows them by itself
    assert export(run, "merged", tmp_path / "out").status == 0
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label == {0: "bad", 1: "good", 2: "so-so"}


def test_exports_that_are_refused(
    runs: Callable[..., Path], tmp_path: Path, models: Callable[[str], Path]
) -> None:
    run = runs("bert")
    outputs = ("--outputs", str(run.parents[1]))

    def said(*arguments: str) -> str:
        ended = forked.run("export", *arguments, "--out", str(tmp_path / "out"))
        assert ended.status == 2
        assert ended.output.startswith("lora_exp: ")
        assert ended.output.count("\n") == 1
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))
        return ended.output

    assert "--to pfet: Did you mean peft?" in said(str(run), "--to", "pfet")
    wrong = run.name[:-3] + "zzz"
    assert f"Did you mean {run.name}?" in said(wrong, "--to", "peft", *outputs)
    assert "loralib has no DoRA" in said(str(runs("bert", "lora.dora=true")), "--to", "loralib")
    for method, form in (("adapter", "peft"), ("adapter", "merged"), ("prompt", "merged")):
        added = runs("bert", f"method={method}")
        assert f"method={method} adds to a model has no" in said(str(added), "--to", form)

    copy = shutil.copytree(run, tmp_path / "copy")
    other = tiny.save(tmp_path / "other", initializer_range=0.05)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(models("bert")), str(other)))
    assert "whose weights are not those of" in said(str(copy), "--to", "merged")
    (copy / "adapter" / WEIGHTS).unlink()
    assert f"there is no {WEIGHTS} in it" in said(str(copy), "--to", "peft")
    (copy / "result.json").unlink()
    (copy / "status.json").write_text('{"state": "preempted"}')
    assert "this run is preempted, not done" in said(str(copy), "--to", "peft")


def test_nothing_is_overwritten_and_nothing_is_left_half_written(
    runs: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("dear to me")
    (tmp_path / "file").write_text("dear to me")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        ended = export(runs("bert"), "peft", tmp_path / name)
        assert ended.status == 2
        assert f"{tmp_path / name}: exists, and nothing is overwritten" in ended.output
    assert (tmp_path / "full" / "mine").read_text() == "dear to me"
    assert (tmp_path / "file").read_text() == "dear to me"
    assert export(runs("bert"), "peft", tmp_path / "empty").status == 0
    assert export(runs("bert"), "peft", tmp_path / "a" / "b").status == 0

    def full_disk() -> None:
        def save(*arguments: Any, **keywords: Any) -> None:
            raise OSError(28, "No space left on device")

        from transformers import PreTrainedTokenizerBase

        PreTrainedTokenizerBase.save_pretrained = save  # type: ignore[method-assign]

    arguments = ("--to", "merged", "--out", str(tmp_path / "new"))
    ended = forked.run("export", str(runs("bert")), *arguments, before=full_disk)
    assert ended.status == 2
    assert f"{tmp_path / 'new'}: cannot be written (No space left on device)" in ended.output
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "empty", "a"}


# -- import ----------------------------------------------------------------------------------------


def loralib_file(model: Path, file: Path, labels: int, add: str = "", **more: Any) -> Any:
    """A model with LoRA on query and value and a head, and its state dictionary in a file."""
    made = plain(model, labels)
    lora.place(made.base_model, lora.preset(made.config.model_type, "qv"), r=8, alpha=16)
    heads = [name for name, _ in made.named_children() if name != made.base_model_prefix]
    lora.mark_only_lora_as_trainable(made, also=heads, **more)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    state = lora.lora_state_dict(made, also=heads, **more)
    torch.save({add + name: value for name, value in state.items()}, file)
    return made


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "deberta-v2"])
def test_a_file_of_loralib_becomes_a_folder_of_peft(
    architecture: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    model = models(architecture)
    made = loralib_file(model, tmp_path / "a.bin", labels=3, add="module.", bias="lora_only")
    ended = take_in(tmp_path / "a.bin", model, tmp_path / "out", "--alpha", "16")
    assert ended.status == 0, ended.output
    assert "with LoRA, a head of 3 labels" in ended.output
    torch.testing.assert_close(by_peft(model, tmp_path / "out", 3), logits(made, model))
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(model)

    again = take_in(tmp_path / "out", model, tmp_path / "again")
    assert again.status == 0, again.output
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_folder_of_peft_becomes_one_of_ours(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    config = peft.LoraConfig(
        r=4,
        target_modules=["query", "word_embeddings"],
        rank_pattern={"word_embeddings": 2},
        modules_to_save=["bert.pooler.dense"],
        task_type="SEQ_CLS",
        bias="all",
        use_rslora=True,
    )
    torch.manual_seed(1)
    theirs = peft.get_peft_model(plain(models("bert"), 3), config)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    expected = logits(theirs, models("bert"))
    ended = take_in(tmp_path / "theirs", models("bert"), tmp_path / "out")
    assert ended.status == 0, ended.output
    torch.testing.assert_close(by_peft(models("bert"), tmp_path / "out", 3), expected)


def test_a_run_starts_from_what_was_imported(models: Callable[[str], Path], tmp_path: Path) -> None:
    model = models("bert")
    loralib_file(model, tmp_path / "a.bin", labels=3)
    assert take_in(tmp_path / "a.bin", model, tmp_path / "in", "--alpha", "16").status == 0
    ended = forked.run(
        f"model.name_or_path={model}",
        f"outputs={tmp_path / 'outputs'}",
        f"model.init_from={tmp_path / 'in'}",
        "train.max_steps=1",
    )
    assert ended.status == 0, ended.output


def test_slices_are_query_and_value_unless_others_are_given(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    model = models("gpt2")
    made = plain(model, 2)
    lora.place(made.transformer, ["c_attn:key"], r=2, alpha=8)
    for _, layer in lora.lora_layers(made):
        nn.init.normal_(layer.lora_B)
    torch.save(lora.lora_state_dict(made, also=["score"]), tmp_path / "a.pt")
    ended = take_in(tmp_path / "a.pt", model, tmp_path / "out", "--alpha", "8")
    assert ended.status == 2
    assert "for 1 of the 3 slices of this layer, query, key, value" in ended.output
    more = ("--alpha", "8", "--slices", "key")
    assert take_in(tmp_path / "a.pt", model, tmp_path / "out", *more).status == 0
    torch.testing.assert_close(by_peft(model, tmp_path / "out"), logits(made, model))


def test_a_head_of_something_else_is_left_out(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    loralib_file(models("bert"), tmp_path / "a.pt", labels=2)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    weight, bias = state.pop("classifier.weight"), state.pop("classifier.bias")
    for more in ({}, {"cls.decoder.bias": bias}, {"classifier.weight": weight}):
        torch.save(state | more, tmp_path / "a.pt")
        ended = take_in(tmp_path / "a.pt", models("bert"), tmp_path / "out", "--alpha", "16")
        assert ended.status == 0, ended.output
        assert "no head" in ended.output
        assert ("Left out, as not of this model's head: " in ended.output) == bool(more)
        assert not any("classifier" in name for name in load_file(tmp_path / "out" / WEIGHTS))
        shutil.rmtree(tmp_path / "out")


def test_imports_that_are_refused(
    models: Callable[[str], Path], runs: Callable[..., Path], tmp_path: Path
) -> None:
    file, model = tmp_path / "a.pt", models("bert")
    loralib_file(model, file, labels=2)

    def said(source: Path, model: Path | str, *more: str) -> str:
        ended = take_in(source, model, tmp_path / "out", *more)
        assert ended.status == 2
        assert ended.output.startswith("lora_exp: ")
        assert "Traceback" not in ended.output
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))
        return ended.output

    alpha = ("--alpha", "16")
    assert "does not say its alpha" in said(file, model)
    assert "alpha=nan: must be a finite number" in said(file, model, "--alpha", "nan")
    assert "says its alpha; give none" in said(runs("bert") / "adapter", model, *alpha)
    assert "there is no such file or folder" in said(tmp_path / "b.pt", model, *alpha)
    assert "--model minilmm: " in said(file, "minilmm", *alpha)
    assert "Did you mean minilm?" in said(file, "minilmm", *alpha)
    assert "there is no such folder" in said(file, tmp_path / "nowhere", *alpha)
    assert "(the nearest is roberta.encoder" in said(file, models("roberta"), *alpha)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in said(file, model, *alpha)


def test_another_backbone_must_be_meant(
    models: Callable[[str], Path], runs: Callable[..., Path], tmp_path: Path
) -> None:
    other = tiny.save(tmp_path / "other", initializer_range=0.05)
    ended = take_in(runs("bert") / "adapter", other, tmp_path / "out")
    assert ended.status == 2
    assert f"trained on {models('bert')}, whose weights are not those of {other}" in ended.output
    ended = take_in(runs("bert") / "adapter", other, tmp_path / "out", "--any-backbone")
    assert ended.status == 0, ended.output
    by_peft(other, tmp_path / "out")


KEYS = SHARED / "data" / "checkpoints" / "roberta_base_lora_mnli.keys.tsv"


@pytest.mark.skipif(not KEYS.exists(), reason="../shared is not there")
def test_the_published_file_of_roberta_base_for_mnli(tmp_path: Path) -> None:
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    model = tiny.save(tmp_path / "model", "roberta", **sizes, intermediate_size=64)
    generator = torch.Generator().manual_seed(1)
    state = {}
    for line in KEYS.read_text().splitlines()[1:]:
        name, shape, *_ = line.split("\t")
        size = tuple(map(int, shape.split("x")))
        state[name] = 0.05 * torch.randn(size, generator=generator)
    torch.save(state, tmp_path / "roberta_base_lora_mnli.bin")
    ended = take_in(
        tmp_path / "roberta_base_lora_mnli.bin", model, tmp_path / "out", "--alpha", "16"
    )
    assert ended.status == 0, ended.output
    assert "24 layers with LoRA, a head of 3 labels" in ended.output
    made = plain(model, 3)
    for block in made.roberta.encoder.layer:
        for name in ("query", "value"):
            layer = loralib.Linear(768, 768, r=8, lora_alpha=16)
            attention = block.attention.self
            layer.load_state_dict(getattr(attention, name).state_dict(), strict=False)
            setattr(attention, name, layer)
    assert made.load_state_dict(state, strict=False).unexpected_keys == []
    torch.testing.assert_close(by_peft(model, tmp_path / "out", 3), logits(made, model))
