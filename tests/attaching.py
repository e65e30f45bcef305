"""Backbones with a method attached, as a run prepares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from lora_exp import methods
from lora_exp.models import Backbone
from lora_exp.runs.config import Config, ModelConfig
from lora_exp.train.batches import Batch
from lora_exp.train.workplace import loaded

LENGTHS = [5, 17, 9, 3, 16, 30, 5, 1]


def config_of(folder: Path | str, method: str, seed: int = 1, **values: Any) -> Config:
    """A run of a method with values of its section."""
    config = Config(model=ModelConfig(str(folder)), method=method, seed=seed)
    for name, value in values.items():
        setattr(getattr(config, method), name, value)
    return config


def attached(folder: Path, method: str, seed: int = 1, **values: Any) -> Backbone:
    """A saved model with a method, in evaluation mode."""
    backbone = loaded(ModelConfig(str(folder)), 2)
    methods.attach(backbone, config_of(folder, method, seed, **values))
    backbone.model.eval()
    return backbone


def move(backbone: Backbone, by: float = 0.1) -> None:
    """As training would: no trained tensor keeps its first value."""
    generator = torch.Generator().manual_seed(0)
    for parameter in methods.trained(backbone.model).values():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)


def write(backbone: Backbone, config: Config, folder: Path) -> Path:
    """The adapter's folder."""
    folder.mkdir()
    for name, content in methods.method(config.method).files(backbone, config).items():
        (folder / name).write_bytes(content)
    return folder


def batch(lengths: list[int] = LENGTHS, *, types: bool = False) -> Batch:
    """Sequences of random tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 40, (sum(lengths),), generator=generator)
    some = torch.randint(0, 2, (sum(lengths),), generator=generator) if types else None
    return Batch(ids, some, lengths, torch.arange(len(lengths)) % 2)


def on_paper(architecture: PreTrainedConfig, config: Config, *, writes: bool = False) -> Backbone:
    """A model of any size without memory for its weights, with a method attached."""
    auto = AutoModelForCausalLM if writes else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(architecture)
    prefix = model.base_model_prefix + "."
    names = [name for name, _ in model.named_parameters() if not name.startswith(prefix)]
    head = frozenset() if writes else frozenset(names)
    backbone = Backbone(model, None, head, frozenset())  # type: ignore[arg-type]
    with torch.device("meta"):
        methods.attach(backbone, config)
    return backbone
