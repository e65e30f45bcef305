"""Initial values that depend on a seed and a weight's own name, and on nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lora_exp.lora.base import LoraLayer
from lora_exp.lora.linear import Linear, MergedLinear
from lora_exp.lora.state import lora_layers


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one tensor: other targets, or another order, do not change its values."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def initialise(model: nn.Module, seed: int, *, normal: float | None = None) -> None:
    """Give every LoRA layer its initial values: A random, B zero (in embeddings the reverse).

    Args:
        model: has LoRA layers.
        seed: of the run.
        normal: standard deviation of normal values (the published DeBERTa runs); None is loralib's
            kaiming uniform.
    """
    for name, layer in lora_layers(model):
        layer.reset_lora_parameters(named_generator(seed, f"{name}.lora_A"), normal=normal)


@torch.no_grad()
def initialise_pissa(model: nn.Module) -> None:
    """Start from the largest singular values of each weight (PiSSA, Meng et al. 2024,
    arXiv:2404.02948, section 3).

    B A holds the principal part, and the frozen weight the rest, so the output is at first that of
    the plain model. What was taken out is kept in `taken_A` and `taken_B`: with it, the adapter is
    saved as an ordinary one, for the weight as it was.

    Raises:
        ValueError: for a layer that is not linear, tied, only adapted in slices, or started so
            already.
    """
    layers = dict(lora_layers(model))
    owners = Counter(id(weight) for weight in _weights(model))
    for name, layer in layers.items():
        if not isinstance(layer, Linear) or isinstance(layer, MergedLinear):
            raise ValueError(
                f"PiSSA starts from whole linear weights; {name} is a {type(layer).__name__}. "
                "Name linear layers, whole ones, or leave PiSSA out."
            )
        if "taken_A" in layer._buffers:
            raise ValueError(f"{name} was started with PiSSA already")
        if owners[id(layer.base_weight)] > 1:
            raise ValueError(f"PiSSA changes the weight of {name}, which is tied to another module")
    for layer in layers.values():
        if isinstance(layer, Linear) and not layer.weight.is_meta:
            layer.while_unmerged(_start_with_pissa, layer)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, LoraLayer) and name == "weight":
                yield module.base_weight
            else:
                yield parameter


def _start_with_pissa(layer: Linear) -> None:
    weight = layer.weight
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    u, s, v = torch.linalg.svd(wide.T if layer.fan_in_fan_out else wide, full_matrices=False)
    root = (s[: layer.r] / layer.scaling).sqrt()
    layer.put(root[:, None] * v[: layer.r], u[:, : layer.r] * root, layer.scaling)
    taken = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    layer.register_buffer("taken_A", taken[0], persistent=False)
    layer.register_buffer("taken_B", taken[1], persistent=False)
    product = layer.product(*(factor.to(wide.dtype) for factor in taken))
    rest = (wide - layer.scaling * product).to(weight.dtype)
    layer.weight = nn.Parameter(rest, requires_grad=False)
