"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_exp.lora import serialise

if TYPE_CHECKING:
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
        "adapter_config.json": (json.dumps(about, indent=2) + "\n").encode(),
        "adapter_model.safetensors": serialise(dict(trained(backbone.model))),
    }
