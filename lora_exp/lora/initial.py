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
        layer.reset_lora_parameters(named_generator(seed, f"{name}.lora_A"), normal=normal)
