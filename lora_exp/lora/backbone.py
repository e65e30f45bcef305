"""By what an adapter knows the weights that it was trained on."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from lora_exp.lora.base import LoraLayer


def backbone_hash(model: nn.Module) -> str:
    """SHA-256 of a model's pre-trained weights: names, shapes and values, rounded to bfloat16.

    It is the same with LoRA layers or without, merged or not, in float32 or bfloat16 (not float16),
    and under any head of transformers. Biases and poolers are left out: they may belong to an
    adapter or a head.

    Args:
        model: of a transformers model the pre-trained part counts, of any other all of it.
    """
    prefix = getattr(model, "base_model_prefix", None)
    inner: nn.Module = getattr(model, prefix, model) if isinstance(prefix, str) else model
    digest = hashlib.sha256()
    for name, module in sorted(inner.named_modules()):
        for own, parameter in module.named_parameters(recurse=False):
            if own == "bias" or own.startswith("lora_") or "pooler" in name.split("."):
                continue
            if isinstance(module, LoraLayer) and own == "weight":
                parameter = module.base_weight
            digest.update(f"{name}.{own} {list(parameter.shape)};".encode())
            rounded = parameter.detach().to(torch.bfloat16).cpu().flatten()
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()
