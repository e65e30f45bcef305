"""One batch through a model, as the loop does it."""

from __future__ import annotations

from torch import Tensor

from lora_exp.models import Backbone
from lora_exp.train.batches import Batch
from lora_exp.train.families import make_flat
from lora_exp.train.forward import Piece, forward


def logits_of(backbone: Backbone, batch: Batch, precision: str = "fp32") -> Tensor:
    """[sequences, classes]"""
    make_flat(backbone.model)
    with forward([Piece(backbone, batch)], precision) as (logits,):
        return logits
