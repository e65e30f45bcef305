"""Initial values that depend on a seed and a weight's own name, and on nothing else."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from lora_exp.lora.state import lora_layers


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one tensor: other targets, or another order, do not change its values."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def initialise(model: nn.Module, seed: int, *, normal: float | None = None) -> None:
    """Give every LoRA layer its initial values: A random, B zero.

    Args:
        model: has LoRA layers.
        seed: of the run.
        normal: standard deviation of a normal A (the published DeBERTa runs); None is loralib's
            kaiming uniform.
    """
    for name, layer in lora_layers(model):
        if layer.lora_A.is_meta:
            continue
        generator = named_generator(seed, f"{name}.lora_A")
        values = torch.empty(layer.lora_A.shape)
        if normal is None:
            nn.init.kaiming_uniform_(values, a=5**0.5, generator=generator)
        else:
            nn.init.normal_(values, std=normal, generator=generator)
        layer.lora_A.data.copy_(values)
        nn.init.zeros_(layer.lora_B)
