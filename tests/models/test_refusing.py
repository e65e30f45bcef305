"""What is refused: weights that do not fit, broken files, code that comes with a model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import tiny as tiny_models
import torch
from model_folders import (
    ARCHITECTURES,
    Tensors,
    change_json,
    change_weights,
    refusal,
)
from safetensors.torch import load_file

from lora_exp import models
from lora_exp.runs.config import ModelConfig

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
    assert not (tmp_path / "outputs" / "runs").exists()


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
