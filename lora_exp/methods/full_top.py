"""The top layers are trained in full, and what stands above them (FT-Top2 of Li and Liang 2021,
arXiv:2101.00190). Embeddings stay as they are, those that are tied to the output as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_exp.errors import UserError
from lora_exp.methods.blocks import blocks_of, layers_of
from lora_exp.methods.full import files

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

__all__ = ["attach", "files"]


def attach(backbone: Backbone, config: Config) -> None:
    """Train the last `full_top.layers` layers, the final norm and the pooler.

    Raises:
        UserError: if the model has fewer layers, or its layers are not known.
    """
    layers, wanted = layers_of(backbone, config.method), config.full_top.layers
    if wanted > len(layers):
        raise UserError(f"full_top.layers={wanted}: the model has {len(layers)} layers.")
    base = backbone.model.base_model
    above = (getattr(base, name, None) for name in blocks_of(backbone, config.method).above)
    for part in (*layers[-wanted:], *above):
        if part is not None:
            part.requires_grad_(True)
