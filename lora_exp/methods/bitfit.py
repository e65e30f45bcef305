"""BitFit: every bias of the backbone is trained, and the head (Ben Zaken et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_exp.errors import UserError
from lora_exp.methods.full import files

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

__all__ = ["attach", "files"]


def attach(backbone: Backbone, config: Config) -> None:
    """Train every parameter that its module calls `bias`, those of the norms included."""
    biases = [
        parameter
        for module in backbone.model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias"
    ]
    if not biases:
        raise UserError("method=bitfit: this model has no biases to train. Choose another method.")
    for bias in biases:
        bias.requires_grad = True
