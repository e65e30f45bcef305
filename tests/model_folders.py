"""Folders of small models, spoilt in every way, and what loading them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_exp import models
from lora_exp.errors import UserError
from lora_exp.models import Backbone
from lora_exp.runs.config import ModelConfig
from lora_exp.train.batches import Batch

HEAD = {"classifier.weight", "classifier.bias"}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
ARCHITECTURES = ["bert", "roberta", "deberta-v2", "gpt2"]

Tensors = dict[str, Tensor]


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
