"""Adapters as files, in the form of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import safetensors.torch
import torch
from torch import Tensor, nn

from lora_exp.lora.layers import LoraLayer, MergedLinear
from lora_exp.lora.state import lora_layers

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model it wraps."""


def peft_files(
    model: nn.Module,
    *,
    base_model: str,
    modules_to_save: Sequence[str] = (),
    task_type: str | None = None,
) -> dict[str, bytes]:
    """The two files that `peft.PeftModel.from_pretrained` opens, as their contents by name.

    Args:
        model: has LoRA layers, all of one dropout.
        base_model: name or path of the pre-trained model, for PEFT's `base_model_name_or_path`.
        modules_to_save: modules that are trained in full (the head) and saved as they are.
        task_type: PEFT's name of the task, such as SEQ_CLS.
    """
    tensors: dict[str, Tensor] = {}
    layers = dict(lora_layers(model))
    for name, layer in layers.items():
        a, b = _dense_factors(layer)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    for module in modules_to_save:
        for name, tensor in model.get_submodule(module).state_dict().items():
            tensors[f"{PREFIX}{module}.{name}"] = tensor
    ranks = {name: _dense_rank(layer) for name, layer in layers.items()}
    alphas = {name: layer.scaling * ranks[name] for name, layer in layers.items()}
    first = next(iter(layers))
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "lora_dropout": layers[first].lora_dropout.p,
        "target_modules": list(layers),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != ranks[first]},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alphas[first]},
        "fan_in_fan_out": layers[first].fan_in_fan_out,
        "modules_to_save": list(modules_to_save) or None,
        "bias": "none",
        "inference_mode": True,
    }
    return {
        "adapter_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "adapter_model.safetensors": serialise(tensors),
    }


def serialise(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as the content of a safetensors file."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(on_cpu, metadata={"format": "pt"})


def _dense_rank(layer: LoraLayer) -> int:
    return layer.lora_A.shape[0]


def _dense_factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """A [R, in] and B [out, R] of one dense update: slices become blocks of B."""
    if not isinstance(layer, MergedLinear):
        return layer.lora_A, layer.lora_B
    width = layer.slice_width
    b = torch.zeros(
        layer.out_features, _dense_rank(layer), dtype=layer.lora_B.dtype, device=layer.lora_B.device
    )
    for block, place in enumerate(layer.enabled_slices()):
        rows = slice(place * width, (place + 1) * width)
        columns = slice(block * layer.r, (block + 1) * layer.r)
        b[rows, columns] = layer.lora_B.detach()[block * width : (block + 1) * width]
    return layer.lora_A, b
