"""What is loaded, from where, and that nothing of a backbone goes missing in silence."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny as tiny_models
import torch
import transformers
from model_folders import (
    ARCHITECTURES,
    HEAD,
    POOLER,
    Tensors,
    as_pretrained,
    change_json,
    change_weights,
    load,
    one_batch,
    same_backbone,
)
from passes import logits_of
from safetensors.torch import load_file
from torch import nn

from lora_exp import methods, models
from lora_exp.errors import UserError
from lora_exp.models import Backbone
from lora_exp.runs.config import Config, ModelConfig
from lora_exp.train.batches import Batch

# -- what is loaded ------------------------------------------------------------------------------


def test_a_bare_backbone_gets_a_new_head(folder: Path) -> None:
    backbone = load(folder, outputs=3)
    assert backbone.new == backbone.head == HEAD
    assert backbone.model.get_parameter("classifier.weight").shape == (3, 32)
    assert same_backbone(backbone, load_file(folder / "model.safetensors"))
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("other", "new"), [("BertForMaskedLM", HEAD | POOLER), ("BertForPreTraining", HEAD)]
)
def test_the_head_of_another_task_is_left_out(folder: Path, other: str, new: set[str]) -> None:
    weights = as_pretrained(folder, other)
    assert any(name.startswith("cls.") for name in weights)
    backbone = load(folder)
    assert backbone.new == backbone.head == new
    bare = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    assert same_backbone(backbone, bare)


def test_a_fine_tuned_head_for_as_many_classes_is_kept(folder: Path) -> None:
    weights = as_pretrained(folder, "BertForSequenceClassification", num_labels=3)
    backbone = load(folder, outputs=3)
    assert backbone.new == set()
    assert backbone.head == HEAD
    methods.attach(backbone, Config(model=ModelConfig(str(folder))))
    for name in HEAD:
        assert torch.equal(backbone.model.get_parameter(name), weights[name])
        assert backbone.model.get_parameter(name).requires_grad


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_fine_tuned_head_for_other_classes_starts_anew(
    folder: Path, tiny: Path, outputs: int
) -> None:
    as_pretrained(folder, "BertForSequenceClassification", num_labels=3)
    backbone, bare = load(folder, outputs), load(tiny, outputs)
    assert backbone.new == HEAD
    assert backbone.model.get_parameter("classifier.weight").shape == (outputs, 32)
    # The new values come from seed and name: those of a head that never was.
    for loaded in (backbone, bare):
        methods.attach(loaded, Config(model=ModelConfig(str(folder)), seed=3))
    for name in HEAD:
        values = backbone.model.get_parameter(name)
        assert torch.equal(values, bare.model.get_parameter(name))
        assert values.any() == name.endswith("weight")


def test_a_missing_pooler_is_a_new_part_of_the_head(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    change_weights(folder, lambda w: {n: t for n, t in w.items() if "pooler" not in n})
    backbone = load(folder)
    assert backbone.new == backbone.head == HEAD | POOLER
    config = Config(model=ModelConfig(str(folder)))
    methods.attach(backbone, config)
    trained = methods.trained(backbone.model)
    assert trained.keys() >= POOLER
    for parameter in trained.values():
        parameter.data += 0.1 * torch.randn_like(parameter)

    written = tmp_path / "adapter"
    written.mkdir()
    for name, content in methods.method("lora").files(backbone, config).items():
        (written / name).write_bytes(content)
    saved = load_file(written / "adapter_model.safetensors")
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in trained.values())

    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    theirs = PeftModel.from_pretrained(base, str(written)).eval()
    batch = one_batch()
    backbone.model.eval()
    ours = logits_of(backbone, batch)
    for row, sequence in zip(ours, batch.input_ids.split(batch.lengths), strict=True):
        torch.testing.assert_close(theirs(input_ids=sequence[None]).logits[0], row)


@pytest.mark.parametrize("prefix", ["", "its own"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_old_checkpoints_name_norms_otherwise_and_hold_constants(
    tmp_path: Path, architecture: str, prefix: str
) -> None:
    folder = tiny_models.save(tmp_path / "model", architecture)
    loaded = load(folder)
    own, new = loaded.model.base_model.state_dict(), loaded.new
    start = loaded.model.base_model_prefix + "." if prefix else ""

    def age(weights: Tensors) -> Tensors:
        if architecture == "gpt2":
            weights["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
            weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        else:
            weights["embeddings.position_ids"] = torch.arange(64)[None]
        changes = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for name in list(weights):
            for newer, older in changes.items():
                if name.endswith(newer):
                    weights[name.replace(newer, older)] = weights.pop(name) + 0.5
        return {start + name: tensor for name, tensor in weights.items()}

    change_weights(folder, age)
    aged = load(folder)
    assert aged.new == new
    for name, tensor in aged.model.base_model.state_dict().items():
        changed = 0.5 if "LayerNorm." in name else 0
        assert torch.equal(tensor, own[name] + changed), name


def test_weights_in_a_pickle_of_tensors_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert same_backbone(load(folder), weights)


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    as_pretrained(folder, "BertForMaskedLM")  # heads to be left out, a pooler that is missing

    def as_imported() -> None:
        """Let transformers report what it likes, and to where stderr leads now."""
        transformers.logging._reset_library_root_logger()  # pyright: ignore
        transformers.logging.set_verbosity_warning()
        transformers.logging.enable_progress_bar()
        capfd.readouterr()

    as_imported()
    transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert "cls.predictions" in capfd.readouterr().err, "there is something to be silenced"
    as_imported()
    load(folder)
    said = capfd.readouterr()
    transformers.logging._reset_library_root_logger()  # pyright: ignore
    assert said == ("", "")


# -- where a model is ----------------------------------------------------------------------------


def test_a_folder_a_package_and_a_hub_id_are_told_apart(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models.locate(ModelConfig(str(tiny))) == str(tiny)
    monkeypatch.chdir(tiny.parent)
    assert models.locate(ModelConfig(tiny.name)) == tiny.name
    assert models.locate(ModelConfig("org/name")) == "org/name"
    assert models.locate(ModelConfig("roberta-base")) == "roberta-base"
    package = tmp_path / "a_package"
    package.symlink_to(tiny)
    monkeypatch.syspath_prepend(tmp_path)
    assert models.locate(ModelConfig(f"package:{package.name}")) == str(package)
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert models.locate(ModelConfig(f"~/{tiny.name}")) == str(tiny)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_one/model", "the package no-such-one is not installed. Install it (pip "),
        ("package:no_such.part/model", "the package no-such.part is not installed."),
        ("package:sys/model", "the package sys is not installed."),
        ("package:/model", "the package  is not installed."),
        ("package:lora_exp/no_model", "there is no folder "),
        ("package:lora_exp/runs", "this folder has no config.json."),
        ("{parent}/tiny-brt", "there is no such folder. Did you mean tiny-bert?"),
        ("{parent}/else", "there is no such folder. There are folders in {parent}: tiny-bert."),
        ("{parent}", "this folder has no config.json."),
        ("./{name}", "there is no such folder."),
        ("a/b/c", "there is no such folder."),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "tiny-bert").mkdir()
    places = {"parent": str(tmp_path), "name": tmp_path.name}
    for asked in (models.locate, models.fingerprint):
        with pytest.raises(UserError) as caught:
            asked(ModelConfig(name.format(**places)))
        told = str(caught.value)
        given = name.format(**places)
        assert told.startswith(f"model.name_or_path={given}: {message.format(**places)}")


# -- dropout -------------------------------------------------------------------------------------

OF_THE_HEAD = {
    "bert": {"dropout"},
    "roberta": {"classifier.dropout"},
    "deberta-v2": {"dropout"},
    "gpt2": set(),
}


def dropouts(backbone: Backbone) -> dict[str, float]:
    modules = backbone.model.named_modules()
    return {name: module.p for name, module in modules if isinstance(module, nn.Dropout)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_reaches_every_module(tmp_path: Path, architecture: str) -> None:
    folder, head = tiny_models.save(tmp_path, architecture), OF_THE_HEAD[architecture]
    before, after = dropouts(load(folder)), dropouts(load(folder, dropout=0.3))
    assert set(before.values()) - {0.0} == {0.1}
    # The head takes its dropout from the hidden states', unless it is given one.
    assert after == {name: p and 0.3 for name, p in before.items()}
    assert sum(p == 0.3 for p in after.values()) == 7 + len(head)
    if head:
        apart = dropouts(load(folder, dropout=0.3, head_dropout=0.4))
        assert apart == after | dict.fromkeys(head, 0.4)
        alone = dropouts(load(folder, head_dropout=0.0))
        assert alone == before | dict.fromkeys(head, 0.0)


NARROW = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("architecture", "sizes", "head"),
    [
        ("distilbert", {"dim": 8, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}, "dropout"),
        ("albert", NARROW | {"num_attention_heads": 2, "embedding_size": 8}, "dropout"),
        ("modernbert", NARROW | {"num_attention_heads": 2}, "drop"),
    ],
)
def test_dropouts_of_other_names_are_found(
    tmp_path: Path, architecture: str, sizes: dict[str, int], head: str
) -> None:
    transformers.AutoConfig.for_model(architecture, **sizes).save_pretrained(tmp_path)
    config = models.load_config(ModelConfig(str(tmp_path), dropout=0.3, head_dropout=0.4), 2)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert len(found) > 2
    assert found == {name: 0.4 if name == head else 0.3 for name in found}


@pytest.mark.parametrize(
    ("key", "architecture", "message"),
    [
        ("head_dropout", "gpt2", "model.head_dropout: the head of gpt2 has no dropout."),
        ("head_dropout", "mpnet", "model.head_dropout: the head of mpnet has no dropout."),
        ("dropout", "mamba", "model.dropout: mamba has no dropout to change."),
    ],
)
def test_a_dropout_that_is_not_there_is_refused(
    tmp_path: Path, key: str, architecture: str, message: str
) -> None:
    transformers.AutoConfig.for_model(architecture).save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        models.load_config(replace(ModelConfig(str(tmp_path)), **{key: 0.2}), 2)
    assert str(caught.value) == message


# -- identity and size ---------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return models.fingerprint(ModelConfig(str(folder)))

    first = fingerprint(folder)
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert fingerprint(copied) == first
    (copied / "README.md").write_text("# A model")
    (copied / ".cache").mkdir()
    assert fingerprint(copied) == first

    change_weights(copied, lambda w: w | {"pooler.dense.bias": w["pooler.dense.bias"] + 1})
    assert fingerprint(copied) != first
    shutil.copy(folder / "model.safetensors", copied)
    assert fingerprint(copied) == first
    change_json(copied / "config.json", hidden_act="relu")
    assert fingerprint(copied) != first


def test_the_fingerprint_of_a_hub_model_names_its_revision() -> None:
    ids = [models.fingerprint(ModelConfig("org/name", revision)) for revision in (None, "v2")]
    assert ids == ["hub:org/name@main", "hub:org/name@v2"]


@pytest.mark.parametrize(
    ("architecture", "changes", "positions"),
    [
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("bert", {"max_position_embeddings": 512}, 512),
        ("gpt2", {"n_positions": 48}, 48),
    ],
)
def test_the_longest_sequence_and_no_longer(
    tmp_path: Path, architecture: str, changes: dict[str, int], positions: int
) -> None:
    backbone = load(tiny_models.save(tmp_path, architecture, **changes))
    assert backbone.longest == positions
    forward = partial(logits_of, backbone)

    def sequence(length: int) -> Batch:
        return Batch(torch.full((length,), 5), None, [length], torch.zeros(1, dtype=torch.int64))

    backbone.model.eval()
    assert forward(sequence(positions)).isfinite().all()
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        forward(sequence(positions + 1))


def test_positions_start_behind_the_padding_of_the_model_not_of_the_tokenizer(
    tmp_path: Path,
) -> None:
    """A tokenizer with another padding token must not move the positions."""
    backbone = load(tiny_models.save(tmp_path, "roberta", pad_token_id=1))
    assert backbone.tokenizer.pad_token_id == 0
    batch = one_batch(types=False)
    backbone.model.eval()
    plain = [
        backbone.model(input_ids=row[None]).logits[0]
        for row in batch.input_ids.split(batch.lengths)
    ]
    ours = logits_of(backbone, batch)
    torch.testing.assert_close(ours, torch.stack(plain))
