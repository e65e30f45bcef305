"""Padded batches, for backbones that cannot take flat ones (DeBERTa's attention is its own)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from torch import Tensor

    from lora_exp.train.batches import Batch


def logits(model: Any, batch: Batch) -> Tensor:
    """[sequences, classes]; sequences are padded to the batch's longest.

    Args:
        model: any sequence classifier of transformers.
        batch: on the model's device.
    """
    return model(**_inputs(model, batch)).logits


def hidden(model: Any, batch: Batch) -> Tensor:
    """[targets, hidden]: what a language model makes its predictions of.

    Args:
        model: any causal language model of transformers.
        batch: of text, on the model's device.
    """
    inputs = _inputs(model, batch)
    states = model.base_model(**inputs, use_cache=False).last_hidden_state
    assert batch.reads is not None
    return states[inputs["attention_mask"].bool()].index_select(0, batch.reads)


def _inputs(model: Any, batch: Batch) -> dict[str, Tensor]:
    sequences: tuple[Tensor, ...] = batch.input_ids.split(batch.lengths)
    lengths = torch.tensor(batch.lengths, device=batch.input_ids.device)
    places = torch.arange(max(batch.lengths), device=lengths.device)
    inputs = {
        "input_ids": pad_sequence(list(sequences), True, model.config.pad_token_id),
        "attention_mask": (places[None, :] < lengths[:, None]).long(),
    }
    if batch.token_types is not None:
        types: tuple[Tensor, ...] = batch.token_types.split(batch.lengths)
        inputs["token_type_ids"] = pad_sequence(list(types), True, 0)
    return inputs
