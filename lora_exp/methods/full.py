"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError

from lora_exp.errors import UserError
from lora_exp.lora import serialise
from lora_exp.runs.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config


def attach(backbone: Backbone, config: Config) -> None:
    """Train everything."""
    backbone.model.requires_grad_(True)


def files(backbone: Backbone, config: Config) -> dict[str, bytes]:
    """The trained tensors under their names in the model, and which model that is."""
    from lora_exp.methods import trained

    about = {
        "method": config.method,
        "base_model_name_or_path": config.model.name_or_path,
        "head": sorted(backbone.head),
    }
    return {
        ADAPTER_CONFIG: (json.dumps(about, indent=2) + "\n").encode(),
        ADAPTER_WEIGHTS: serialise(dict(trained(backbone.model))),
    }


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors that `files` gave.

    Raises:
        UserError: if the file is damaged, or missing.
    """
    file = folder / ADAPTER_WEIGHTS
    try:
        return safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: damaged or incomplete ({error}). Train that run again."
        ) from error
