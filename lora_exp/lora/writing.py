"""Adapters as files: what PEFT, loralib and plain models open is written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lora_exp.lora.base import Factors, LoraLayer
from lora_exp.lora.convolution import Conv2d, Convolution
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.embedding import Embedding
from lora_exp.lora.files import BACKBONE, CHECKSUM, CONFIG, PREFIX, WEIGHTS, checksum
from lora_exp.lora.linear import Linear, MergedLinear
from lora_exp.lora.loading import AdapterError
from lora_exp.lora.state import Bias, lora_layers, lora_state_dict

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the types."""


def peft_files(
    model: nn.Module,
    *,
    base_model: str,
    modules_to_save: Sequence[str] = (),
    bias: Bias = "none",
    task_type: str | None = None,
    backbone: str | None = None,
) -> dict[str, bytes]:
    """The two files that `peft.PeftModel.from_pretrained` opens, as their contents by name.

    Args:
        model: has LoRA layers, all of one dropout.
        base_model: name or path of the pre-trained model, for PEFT's `base_model_name_or_path`.
        modules_to_save: modules that are trained in full (the head) and saved as they are.
        bias: which biases are saved, as in `lora_state_dict`.
        task_type: PEFT's name of the task, such as SEQ_CLS.
        backbone: `backbone_hash` of the pre-trained model.

    Raises:
        AdapterError: if the model has no LoRA layers, or one that PEFT has no form for.
    """
    layers = _layers(model, modules_to_save)
    first, *_ = layers.values()
    if len({isinstance(layer, DoraLinear) for layer in layers.values()}) > 1:
        raise AdapterError("PEFT has DoRA for all layers or for none.")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        try:
            a, b = layer.dense(*_factors(layer))
        except ValueError as error:
            raise AdapterError(f"{name}: {error}.") from error
        ranks[name] = b.shape[1]
        part = "lora_embedding_{}" if isinstance(layer, Embedding) else "lora_{}.weight"
        for letter, factor in zip("AB", (a, b), strict=True):
            tensors[f"{PREFIX}{name}.{part.format(letter)}"] = factor
        if isinstance(layer, DoraLinear):
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector
    for name, tensor in lora_state_dict(model, bias, modules_to_save).items():
        layer, _, part = name.rpartition(".")
        if layer not in layers:
            tensors[PREFIX + name] = tensor
        elif part == "bias":
            tensors[f"{PREFIX}{layer}.base_layer.bias"] = tensor
    alphas = {
        name: _number(layer.scaling * (math.sqrt(ranks[name]) if first.rslora else ranks[name]))
        for name, layer in layers.items()
    }
    r, alpha = ranks[next(iter(ranks))], alphas[next(iter(alphas))]
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": max(layer.lora_dropout.p for layer in layers.values()),
        "target_modules": _targets(model, layers),
        # With ^, a key is no other layer's name that ends so.
        "rank_pattern": {f"^{name}": rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {f"^{name}": one for name, one in alphas.items() if one != alpha},
        "use_rslora": first.rslora,
        "use_dora": isinstance(first, DoraLinear),
        "fan_in_fan_out": any(
            isinstance(layer, Linear) and layer.fan_in_fan_out for layer in layers.values()
        ),
        "modules_to_save": list(modules_to_save) or None,
        "bias": bias,
        "inference_mode": True,
    }
    about = {BACKBONE: backbone} if backbone else {}
    return {
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        WEIGHTS: serialise(tensors, about),
    }


def loralib_state_dict(
    model: nn.Module, *, modules_to_save: Sequence[str] = (), bias: Bias = "none"
) -> tuple[dict[str, Tensor], float]:
    """The state dictionary that loralib's layers load, and the lora_alpha that they need.

    Args:
        model: has LoRA layers.
        modules_to_save: modules that are trained in full (the head) and saved as they are.
        bias: which biases are saved, as in `lora_state_dict`.

    Raises:
        AdapterError: if the model has no LoRA layers, or one that loralib does not have.
    """
    layers = _layers(model, modules_to_save)
    tensors = lora_state_dict(model, bias, modules_to_save)
    alpha: float | None = None
    for name, layer in layers.items():
        if problem := _not_in_loralib(layer):
            raise AdapterError(f"{name}: loralib has no {problem}.")
        a, b = _factors(layer)
        rank = layer.r * len(a) // len(layer.lora_A)
        alpha = _number(layer.scaling * rank) if alpha is None else alpha
        if alpha and not math.isclose(layer.scaling, alpha / rank, rel_tol=1e-9):
            b = b * (layer.scaling * rank / alpha)  # all have one alpha
        tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        if isinstance(layer, Convolution) and f"{name}.bias" in tensors:
            tensors[f"{name}.conv.bias"] = tensors.pop(f"{name}.bias")
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return on_cpu, alpha or 0.0


def _not_in_loralib(layer: LoraLayer) -> str | None:
    if isinstance(layer, DoraLinear):
        return "DoRA"
    if isinstance(layer, MergedLinear) and len({*layer.ranks}) * len({*layer.slice_widths}) > 1:
        return "slices of different ranks or widths"
    square = isinstance(layer, Conv2d) and len({*layer.kernel_size}) == 1
    if isinstance(layer, Convolution) and not square:  # it has, but they fail
        return "convolutions but those over two dimensions with a square kernel"
    return None


def serialise(tensors: dict[str, Tensor], about: Mapping[str, str] | None = None) -> bytes:
    """Tensors as the content of a safetensors file; `about` joins its metadata.

    Equal tensors give equal bytes: safetensors' own function shuffles the metadata.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", CHECKSUM: checksum(on_cpu), **(about or {})}
    header: dict[str, object] = {"__metadata__": metadata}
    parts: list[memoryview] = []
    end = 0
    # Wide types first, so that each begins at a multiple of its width.
    for name, tensor in sorted(on_cpu.items(), key=lambda one: (-one[1].element_size(), one[0])):
        begin, end = end, end + tensor.nbytes
        about_it = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = about_it | {"data_offsets": [begin, end]}
        parts.append(tensor.flatten().view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary of the plain model with every update merged into its weight.

    Raises:
        AdapterError: if a weight with an update is tied to another module's: that one has no
            update, and a plain model can hold only one of both.
    """
    state = dict(model.state_dict())
    everywhere = dict(model.named_modules(remove_duplicate=False))
    owners: dict[int, list[str]] = {}
    for name, module in everywhere.items():
        weight = module.base_weight if isinstance(module, LoraLayer) else None
        for own, parameter in module.named_parameters(recurse=False):
            parameter = weight if weight is not None and own == "weight" else parameter
            owners.setdefault(id(parameter), []).append(name)
    for name, layer in everywhere.items():
        if not isinstance(layer, LoraLayer) or not layer.is_adapted:
            continue
        if tied := [one for one in owners[id(layer.base_weight)] if everywhere[one] is not layer]:
            raise AdapterError(
                f"{name} and {tied[0]} share one weight, and only {name} has an update: merged, "
                "they would differ. Untie them first (tie_word_embeddings=False)."
            )
        state[f"{name}.weight"] = layer.adapted_weight()
    return {name: t for name, t in state.items() if not name.rpartition(".")[2].startswith("lora_")}


def _layers(model: nn.Module, modules_to_save: Sequence[str]) -> dict[str, LoraLayer]:
    layers = dict(lora_layers(model))
    if not layers:
        raise AdapterError("The model has no LoRA layers.")
    for name in layers:
        if any(f"{name}.".startswith(f"{module}.") for module in modules_to_save):
            raise AdapterError(f"{name} has LoRA, and is to be saved as trained in full as well.")
    return layers


def _factors(layer: LoraLayer) -> Factors:
    """A and B for the weight as it was pre-trained; PiSSA took a part out of it."""
    a, b = layer.lora_A.detach(), layer.lora_B.detach()
    taken = layer._buffers.get("taken_A"), layer._buffers.get("taken_B")
    if taken[0] is None or taken[1] is None:
        return a, b
    return layer.join([(a, b), (taken[0], -taken[1])])


def _targets(model: nn.Module, layers: Mapping[str, LoraLayer]) -> list[str] | str:
    """The layers' names, or as PEFT finds modules by the ends of their names, an expression."""
    ends = tuple(f".{name}" for name in layers)
    for name, _ in model.named_modules():
        if name.endswith(ends) and name not in layers:
            return "|".join(map(re.escape, layers))
    return list(layers)


def _number(value: float) -> float:
    """As an integer where it is one but for rounding: that is what people gave."""
    nearest = round(value)
    return nearest if math.isclose(value, nearest, rel_tol=1e-9) else value
