"""What is loaded, what is refused, and that nothing of a backbone goes missing in silence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import tiny as tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_exp import methods, models
from lora_exp.errors import UserError
from lora_exp.models import Backbone
from lora_exp.runs.config import Config, ModelConfig
from lora_exp.train import job
from lora_exp.train.batches import Batch

HEAD = {"classifier.weight", "classifier.bias"}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
ARCHITECTURES = ["bert", "roberta", "deberta-v2", "gpt2"]

Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A tiny BERT (bare: no head) that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(folder: Path, outputs: int = 2, **changes: Any) -> Backbone:
    return models.load(ModelConfig(str(folder), **changes), outputs)


def refusal(folder: Path) -> str:
    """The message, without the part that every message begins with."""
    with pytest.raises(UserError) as caught:
        load(folder)
    start = f"model.name_or_path={folder}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def as_pretrained(folder: Path, model: str, **changes: Any) -> Tensors:
    """Save the weights again as those of another class of transformers; all of its tensors."""
    made = getattr(transformers, model).from_pretrained(folder, **changes)
    made.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def same_backbone(backbone: Backbone, weights: Tensors) -> bool:
    """Whether every tensor of the pre-trained part, but the pooler, is that of the checkpoint."""
    own = backbone.model.base_model.state_dict()
    names = [name for name in own if "pooler" not in name]
    assert len(names) > 30
    return all(torch.equal(own[name], weights[name]) for name in names)


def one_batch(types: bool = True) -> Batch:
    lengths = [7, 4, 9]
    ids = torch.randint(4, 40, (20,), generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(3, dtype=torch.int64)
    return Batch(ids, torch.zeros_like(ids) if types else None, lengths, labels)


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
    ours = job.forward_of(backbone, "fp32")(batch)
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


# -- weights that do not fit ---------------------------------------------------------------------


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda weights: {name.replace(old, new): tensor for name, tensor in weights.items()}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda weights: {name: t for name, t in weights.items() if part not in name}


MISSING, SHAPE, EXTRA = (
    "missing from the checkpoint: bert.",
    "of another shape in the checkpoint: bert.",
    "in the checkpoint but not in the architecture: ",
)
LAYERS = "num_hidden_layers"
MISFITS: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, int], list[str]]] = {
    "a layer is missing": (
        without("layer.1."),
        {},
        [f"16 tensors {MISSING}encoder.layer.1.attention.output.LayerNorm.bias, "],
    ),
    "a tensor is missing": (
        without("layer.0.output.dense.weight"),
        {},
        [f"1 tensors {MISSING}encoder.layer.0.output.dense.weight\n"],
    ),
    "some are renamed": (
        renamed("self.query", "self.q"),
        {},
        [
            f"4 tensors {MISSING}encoder.layer.0.attention.self.query.bias, ",
            f"4 tensors {EXTRA}encoder.layer.0.attention.self.q.bias, ",
        ],
    ),
    "all are renamed": (
        prefixed("module."),
        {},
        [f"37 tensors {MISSING}embeddings.LayerNorm.bias, "],
    ),
    "another width": (
        prefixed(""),
        {"hidden_size": 48},
        [f"35 tensors {SHAPE}embeddings.LayerNorm.bias, "],
    ),
    "another vocabulary": (
        prefixed(""),
        {"vocab_size": 9},
        [f"1 tensors {SHAPE}embeddings.word_embeddings.weight\n"],
    ),
    "fewer layers": (
        prefixed(""),
        {LAYERS: 3},
        [f"16 tensors {MISSING}encoder.layer.2.attention.output.LayerNorm.bias, "],
    ),
    "more layers": (
        prefixed(""),
        {LAYERS: 1},
        [f"16 tensors {EXTRA}encoder.layer.1.attention.output.LayerNorm.bias, "],
    ),
    "more layers, saved with a head": (
        prefixed("bert."),
        {LAYERS: 1},
        [f"16 tensors {EXTRA}bert.encoder.layer.1.attention.output.LayerNorm.bias, "],
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_that_do_not_fit_are_counted_and_named(folder: Path, misfit: str) -> None:
    change, config, expected = MISFITS[misfit]
    change_weights(folder, change)
    change_json(folder / "config.json", **config)
    first, *middle, last = refusal(folder).splitlines(keepends=True)
    assert first == "the weights do not fit the architecture.\n"
    assert last == "Check that config.json and the weights belong together."
    for line, start in zip(middle, expected, strict=True):
        assert line.startswith("  " + start)


# -- broken and missing files --------------------------------------------------------------------


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"garbage" * 100)


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{model_type: bert}")


def config_without_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def unknown_type(folder: Path) -> None:
    change_json(folder / "config.json", model_type="bertt")


def config_of_wrong_types(folder: Path) -> None:
    change_json(folder / "config.json", hidden_size="32")


def tokenizer_not_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0",')


def tokenizer_of_nothing(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


BROKEN: dict[Callable[[Path], None], str] = {
    cut: "its safetensors file is damaged or incomplete (Error while deserializing header: inco",
    garbage: "its safetensors file is damaged or incomplete (Error while deserializing header: hea",
    empty: "its safetensors file is damaged or incomplete (",
    no_weights: "no file named model.safetensors",
    no_config: "this folder has no config.json. A model's folder holds config.json, model.safetens",
    config_not_json: "config.json' is not a valid JSON file.",
    config_without_type: "Should have a `model_type` key in its config.json.",
    unknown_type: "model type `bertt` but Transformers does not recognize this architecture.",
    config_of_wrong_types: "Field 'hidden_size' expected int, got str (value: '32')",
    tokenizer_not_json: "cannot be loaded from ",
    tokenizer_of_nothing: "cannot be loaded from ",
    no_tokenizer: "there is no tokenizer with words in it. The model's folder must hold the tokeni",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_broken_folder_is_told_through_the_front_door(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    assert BROKEN[spoil] in refusal(folder)
    refused_at_the_door(folder, tmp_path, BROKEN[spoil])


def refused_at_the_door(folder: Path, tmp_path: Path, message: str) -> None:
    ended = forked.run(f"model.name_or_path={folder}", f"outputs={tmp_path / 'outputs'}")
    assert ended.output.startswith(f"lora_exp: model.name_or_path={folder}: ")
    assert message in ended.output
    assert "Traceback" not in ended.output
    assert ended.status == 2
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_tokenizer_is_not_a_tokenizer_without_words(tmp_path: Path, architecture: str) -> None:
    folder = tiny_models.save(tmp_path / "model", architecture)
    no_tokenizer(folder)
    assert "there is no tokenizer with words in it" in refusal(folder)


# -- code that comes with a model ----------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
Path({marker!r}).touch()
class Config(BertConfig): model_type = "mine"
class Model(BertForSequenceClassification): config_class = Config
class Tokenizer(BertTokenizerFast): pass
"""
CLASSES = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}


@pytest.mark.parametrize("model_type", ["bert", "mine"])
@pytest.mark.parametrize("named", [*CLASSES, "AutoTokenizer"])
def test_code_that_comes_with_a_model_is_never_run(
    folder: Path, tmp_path: Path, model_type: str, named: str
) -> None:
    (folder / "code.py").write_text(CODE.format(marker=str(tmp_path / "was-run")))
    classes = {named: CLASSES[named]} if named in CLASSES else {named: [None, "code.Tokenizer"]}
    change_json(folder / "config.json", model_type=model_type)
    config = "tokenizer_config.json" if named == "AutoTokenizer" else "config.json"
    change_json(folder / config, auto_map=classes)
    if model_type == "bert":  # transformers has its own class for it
        models.load(ModelConfig(str(folder)), 2)
    else:
        own_code = "this model brings code of its own (auto_map), which "
        assert (own_code if named == "AutoConfig" else "model type `mine`") in refusal(folder)
        refused_at_the_door(folder, tmp_path, "")
    assert not (tmp_path / "was-run").exists()


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["beside the tensors", "a bare pickle"])
def test_code_in_a_pickle_is_never_run(folder: Path, tmp_path: Path, form: str) -> None:
    marker = tmp_path / "was-run"
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if form == "a bare pickle":
        file.write_bytes(pickle.dumps(Touch(marker), protocol=2))
    else:
        torch.save(weights | {"classifier.extra": Touch(marker)}, file)
    assert "its weights are a pickle that is damaged or holds more than tensors" in refusal(folder)
    refused_at_the_door(folder, tmp_path, "Take the model's model.safetensors instead.")
    assert not marker.exists()
    if form == "a bare pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert marker.exists(), "the trap must be one"


# -- where a model is ----------------------------------------------------------------------------


def test_a_folder_a_package_and_a_hub_id_are_told_apart(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models.locate(ModelConfig(str(tiny))) == str(tiny)
    monkeypatch.chdir(tiny.parent)
    assert models.locate(ModelConfig(tiny.name)) == tiny.name
    assert models.locate(ModelConfig("org/name")) == "org/name"
    assert models.locate(ModelConfig("roberta-base")) == "roberta-base"
    monkeypatch.syspath_prepend(tiny.parent)
    assert models.locate(ModelConfig(f"package:{tiny.name}")) == str(tiny)
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
    forward = job.forward_of(backbone, "fp32")

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
    ours = job.forward_of(backbone, "fp32")(batch)
    torch.testing.assert_close(ours, torch.stack(plain))
