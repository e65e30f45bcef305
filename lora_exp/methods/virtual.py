"""Prefixes and prompts as files: PEFT's "virtual tokens"."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from lora_exp.errors import UserError
from lora_exp.lora import serialise
from lora_exp.methods.full import read as read_tensors
from lora_exp.runs.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lora_exp.methods.front import Front
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

EMBEDDINGS = "prompt_embeddings"
"""What PEFT calls both."""
PEFT_NAME = "base_model."
"""Before the names of the head's tensors."""


def front_of(backbone: Backbone, method: str) -> Front:
    """What the method has put in front."""
    return cast("Front", getattr(backbone.model.base_model, method))


def files(backbone: Backbone, config: Config) -> dict[str, bytes]:
    """The two files that PEFT opens; the head is among its `modules_to_save`."""
    front, own = front_of(backbone, config.method), backbone.model.config
    kept = front.kept().detach()
    tensors = {EMBEDDINGS: kept.cpu()}
    parameters = dict(backbone.model.named_parameters())
    tensors |= {PEFT_NAME + name: parameters[name].detach() for name in backbone.head}
    about: dict[str, Any] = {
        "peft_type": f"{config.method.upper()}_TUNING",
        "task_type": "CAUSAL_LM" if backbone.writes else "SEQ_CLS",
        "base_model_name_or_path": config.model.name_or_path,
        "inference_mode": True,
        "num_virtual_tokens": front.length,
        "num_transformer_submodules": 1,
        "num_layers": own.num_hidden_layers,
        "num_attention_heads": own.num_attention_heads,
        "token_dim": kept.shape[1],
        "modules_to_save": sorted(backbone.head_modules),
    }
    if config.method == "prefix":
        heads, width = cast(Any, front).shape[1:]
        about |= {"num_attention_heads": heads, "token_dim": heads * width}
        about |= {"encoder_hidden_size": heads * width, "prefix_projection": False}
    else:
        about |= {"prompt_tuning_init": "RANDOM"}
    return {
        ADAPTER_CONFIG: (json.dumps(about, indent=2) + "\n").encode(),
        ADAPTER_WEIGHTS: serialise(tensors),
    }


def read(folder: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """What stands in front, and the head's tensors by their names in the model.

    Raises:
        UserError: if the file is damaged, missing, or of another method.
    """
    tensors = read_tensors(folder)
    if EMBEDDINGS not in tensors:
        raise UserError(f"{folder / ADAPTER_WEIGHTS}: there is no tensor {EMBEDDINGS} in it.")
    kept = tensors.pop(EMBEDDINGS)
    return kept, {name.removeprefix(PEFT_NAME): tensor for name, tensor in tensors.items()}


def restore(backbone: Backbone, method: str, kept: Tensor) -> None:
    """Start from what a run of the same method has left.

    Raises:
        UserError: if it is of another length, or for another model.
    """
    front = front_of(backbone, method)
    shape = front.kept().shape
    if kept.shape != shape:
        raise UserError(
            f"of {len(kept)} positions of {kept.shape[-1]} values, here {shape[0]} of {shape[1]}. "
            f"Give {method}.length={len(kept)}, and the same backbone."
        )
    front.begin_from(kept.to(front.kept()))
