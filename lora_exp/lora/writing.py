"""Adapters as files: what PEFT, loralib and plain models open is written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lora_exp.lora.base import Factors, LoraLayer
from lora_exp.lora.convolution import Conv2d, Convolution
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.embedding import Embedding
from lora_exp.lora.files import BACKBONE, CHECKSUM, CONFIG, DTYPES, PREFIX, WEIGHTS, checksum, raw
from lora_exp.lora.linear import MergedLinear
from lora_exp.lora.loading import AdapterError
from lora_exp.lora.state import lora_state_dict


def peft_files(
    model: nn.Module,
    *,
    base_model: str,
    modules_to_save: Sequence[str] = (),
    bias: str = "none",
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
    modules = dict(model.named_modules())
    layers = _layers(modules, modules_to_save)
    first, *_ = layers.values()
    if len({isinstance(layer, DoraLinear) for layer in layers.values()}) > 1:
        raise AdapterError("PEFT has DoRA for all layers or for none.")
    tensors: dict[str, Tensor] = {}
    for name, tensor in lora_state_dict(model, bias, modules_to_save).items():
        layer, _, part = name.rpartition(".")
        if layer in layers and part == "bias":
            name = f"{layer}.base_layer.bias"
        if part not in ("lora_A", "lora_B"):
            tensors[PREFIX + name] = tensor
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in layers.items():
        try:
            a, b = layer.dense(*_factors(layer))
        except ValueError as error:
            raise AdapterError(f"{name}: {error}.") from error
        part = "lora_embedding_{}" if isinstance(layer, Embedding) else "lora_{}.weight"
        tensors[f"{PREFIX}{name}.{part.format('A')}"] = a
        tensors[f"{PREFIX}{name}.{part.format('B')}"] = b
        ranks[name] = rank = b.shape[1]
        alphas[name] = _number(layer.scaling * (math.sqrt(rank) if first.rslora else rank))
    r, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    # PEFT finds modules by the ends of their names; an expression is the whole name.
    ends = tuple(f".{name}" for name in layers)
    alike = any(name.endswith(ends) and name not in layers for name in modules)
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": max(layer.lora_dropout.p for layer in layers.values()),
        "target_modules": "|".join(map(re.escape, layers)) if alike else list(layers),
        # With ^, a key is no other layer's name that ends so.
        "rank_pattern": {f"^{name}": rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {f"^{name}": one for name, one in alphas.items() if one != alpha},
        "use_rslora": first.rslora,
        "use_dora": isinstance(first, DoraLinear),
        "fan_in_fan_out": any(getattr(one, "fan_in_fan_out", False) for one in layers.values()),
        "modules_to_save": list(modules_to_save) or None,
        "bias": bias,
        "inference_mode": True,
    }
    return {
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        WEIGHTS: serialise(tensors, {BACKBONE: backbone} if backbone else None),
    }


def loralib_state_dict(
    model: nn.Module, *, modules_to_save: Sequence[str] = (), bias: str = "none"
) -> tuple[dict[str, Tensor], float]:
    """The state dictionary that loralib's layers load, and the lora_alpha that they need.

    Args:
        model: has LoRA layers.
        modules_to_save: modules that are trained in full (the head) and saved as they are.
        bias: which biases are saved, as in `lora_state_dict`.

    Raises:
        AdapterError: if the model has no LoRA layers, or one that loralib does not have.
    """
    layers = _layers(dict(model.named_modules()), modules_to_save)
    tensors = lora_state_dict(model, bias, modules_to_save)
    alpha = 0.0
    for name, layer in layers.items():
        if problem := _not_in_loralib(layer):
            raise AdapterError(f"{name}: loralib has no {problem}.")
        a, b = _factors(layer)
        own = _number(layer.scaling * layer.r * len(a) / len(layer.lora_A))
        alpha = alpha or own  # all have one
        tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": b if own == alpha else b * (own / alpha)}
        if isinstance(layer, Convolution) and f"{name}.bias" in tensors:
            tensors[f"{name}.conv.bias"] = tensors.pop(f"{name}.bias")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, alpha


def _not_in_loralib(layer: LoraLayer) -> str | None:
    if isinstance(layer, DoraLinear):
        return "DoRA"
    if isinstance(layer, MergedLinear) and len({*layer.ranks}) * len({*layer.slice_widths}) > 1:
        return "slices of different ranks or widths"
    square = isinstance(layer, Conv2d) and len({*layer.kernel_size}) == 1
    if isinstance(layer, Convolution) and not square:  # it has, but they fail
        return "convolutions but those over two dimensions with a square kernel"
    return None


def serialise(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> bytes:
    """Tensors as the content of a safetensors file; `about` joins its metadata.

    Equal tensors give equal bytes: safetensors' own function shuffles the metadata.
    """
    # Wide types first, so that each begins at a multiple of its width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    parts = {name: raw(tensors[name]) for name in order}
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", CHECKSUM: checksum(parts), **(about or {})}
    }
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        about_it = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = about_it | {"data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts.values()])


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary of the plain model with every update merged into its weight.

    Raises:
        AdapterError: if a weight with an update is tied to another module's: that one has no
            update, and a plain model can hold only one of both.
    """
    state = model.state_dict()
    state = {n: t for n, t in state.items() if not n.rpartition(".")[2].startswith("lora_")}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in modules.items():
        if not isinstance(layer, LoraLayer) or not layer.is_adapted:
            continue
        for other, module in modules.items():
            held = (getattr(module, "base_weight", None), *module._parameters.values())
            if module is not layer and any(one is layer.base_weight for one in held):
                raise AdapterError(
                    f"{name} and {other} share one weight, and only {name} has an update: merged, "
                    "they would differ. Untie them first (tie_word_embeddings=False)."
                )
        state[f"{name}.weight"] = layer.adapted_weight()
    return state


def _layers(
    modules: Mapping[str, nn.Module], modules_to_save: Sequence[str]
) -> dict[str, LoraLayer]:
    layers = {n: m for n, m in modules.items() if isinstance(m, LoraLayer) and m.is_adapted}
    if not layers:
        raise AdapterError("The model has no LoRA layers.")
    whole = tuple(f"{module}." for module in modules_to_save)
    for name in layers:
        if f"{name}.".startswith(whole):
            raise AdapterError(f"{name} has LoRA, and is to be saved as trained in full as well.")
    return layers


def _factors(layer: LoraLayer) -> Factors:
    """A and B for the weight as it was pre-trained; PiSSA took a part out of it."""
    a, b = layer.lora_A.detach(), layer.lora_B.detach()
    taken = layer._buffers.get("taken_A"), layer._buffers.get("taken_B")
    if taken[0] is None or taken[1] is None:
        return a, b
    return layer.join([(a, b), (taken[0], -taken[1])])


def _number(value: float) -> float:
    """As an integer where it is one but for rounding: that is what people gave."""
    nearest = round(value)
    return nearest if math.isclose(value, nearest, rel_tol=1e-9) else value
