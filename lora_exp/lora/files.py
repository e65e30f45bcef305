"""Adapters as files: PEFT's folders and loralib's state dictionaries are read.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The latter's metadata have the
hash of the backbone's weights, so that a wrong backbone is noticed (`writing.py`).
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from lora_exp.lora.base import Factors
from lora_exp.lora.loading import Adapter, AdapterError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model it wraps."""
BACKBONE, CHECKSUM = "backbone_sha256", "crc32"
"""Where the hash of the backbone and the checksum stand among the metadata of the weights."""
WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Where training scripts keep the state dictionary among other things."""
NAMES = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_embedding_A": "lora_A",
    "lora_embedding_B": "lora_B",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
}
"""PEFT's names in a layer, and ours."""
HARMLESS = {
    *("auto_mapping", "bias", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "modules_to_save", "rank_pattern", "runtime_config"),
    *("alpha_pattern", "target_modules", "use_dora", "use_rslora", "init_lora_weights"),
}
"""What may be set in PEFT's config: the tensors say the same, or it is read here. Other switches
change the output (`use_qalora`, `lora_bias`), or may do so in a PEFT to come."""
STARTS = ("gaussian", "eva", "orthogonal", "mica", "pissa")
"""PEFT's initialisations, besides the usual one, that leave the weights as they are; and PiSSA's,
which takes out of them what can be computed again."""
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Alpha = Callable[[str], float]
"""From the name of a layer to its alpha."""


def read(path: str | Path, *, alpha: float | None = None) -> Adapter:
    """An adapter from a folder of PEFT, or a state dictionary of loralib (`.bin`, `.pt`).

    Nothing in a file is ever run.

    Args:
        path: the folder or file.
        alpha: of the adapter; needed for loralib's files, which do not hold it, only for them.

    Raises:
        AdapterError: if there is none, it is damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.name in (CONFIG, WEIGHTS, PICKLE) and (path.parent / CONFIG).is_file():
        path = path.parent
    try:
        if path.is_dir():
            if alpha is not None:
                raise AdapterError(f"{path}: its {CONFIG} says its alpha; give none.")
            return _read_peft(path)
        if not path.is_file():
            raise AdapterError(f"{path}: there is no such file or folder.")
        if alpha is None:
            raise AdapterError(
                f"{path}: a state dictionary of loralib does not say its alpha; it must be given."
            )
        if not math.isfinite(alpha):
            raise AdapterError(f"alpha={alpha}: must be a finite number.")
        tensors, _ = _tensors(path)
        return _adapter(path, tensors, lambda layer: alpha)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _read_peft(folder: Path) -> Adapter:
    config = _config(folder / CONFIG)
    file = next((folder / one for one in (WEIGHTS, PICKLE) if (folder / one).exists()), None)
    if file is None:
        raise AdapterError(f"{folder}: there is no {WEIGHTS} in it.")
    tensors, metadata = _tensors(file)
    adapter = _adapter(
        file,
        {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()},
        _peft_alpha(folder / CONFIG, config),
        rslora=config.get("use_rslora", False),
        pissa=str(config.get("init_lora_weights")).lower().startswith("pissa"),
        base_model=config.get("base_model_name_or_path"),
        backbone=metadata.get(BACKBONE),
    )
    dora = config.get("use_dora", False)
    for layer in adapter.updates:
        if dora != (layer in adapter.magnitudes):
            raise AdapterError(
                f"{file}: use_dora is {str(dora).lower()} in {CONFIG}, but {layer} has "
                f"{'no' if dora else 'a'} lora_magnitude_vector."
            )
    return adapter


def _config(file: Path) -> dict[str, Any]:
    """PEFT's config, if all of it is understood here."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{file.parent}: there is no {CONFIG} in it.") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file}: not valid JSON: {error}.") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise AdapterError(f"{file}: peft_type is {kind!r}, not 'LORA'.")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key, False), bool):
            raise AdapterError(f"{file}: {key} is {config[key]!r}, neither true nor false.")
    if not isinstance(config.get("base_model_name_or_path"), str | None):
        raise AdapterError(f"{file}: base_model_name_or_path is no name.")
    for key, value in config.items():
        if key not in HARMLESS and (value is True or (value and isinstance(value, dict | list))):
            raise AdapterError(f"{file}: {key} is set, which lora_exp does not have.")
    start = config.get("init_lora_weights")
    if not isinstance(start, bool | None) and not str(start).lower().startswith(STARTS):
        raise AdapterError(
            f"{file}: init_lora_weights is {start!r}: the adapter belongs to weights that PEFT "
            "changed before training. Save it as an ordinary one: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)."
        )
    return config


def _peft_alpha(file: Path, config: dict[str, Any]) -> Alpha:
    """Each layer's alpha: that of the first pattern that matches, as in PEFT."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{file}: alpha_pattern is {patterns!r}, not a mapping.")
    known: list[tuple[re.Pattern[str], Any]] = []
    for key, value in patterns.items():
        try:
            known.append((re.compile(rf"(.*\.)?({key})$"), value))
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterError(f"{file}: alpha_pattern: {key!r}: {error}.") from error

    def alpha(layer: str) -> float:
        value = next((v for key, v in known if key.match(layer)), config.get("lora_alpha"))
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
            return float(value)
        raise AdapterError(f"{file}: lora_alpha is {value!r}, not a number.")

    return alpha


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and its metadata.

    Raises:
        AdapterError: if it is damaged, or holds anything else.
    """
    metadata: dict[str, str] = {}
    if file.suffix == ".safetensors":
        try:
            with safetensors.safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise AdapterError(f"{file}: damaged or incomplete ({error}).") from error
        if metadata.get(CHECKSUM, checksum(tensors)) != checksum(tensors):
            raise AdapterError(f"{file}: damaged (its checksum is another).")
    else:
        file.open("rb").close()  # the system's own reasons not to read it go their way
        try:
            if zipfile.is_zipfile(file):  # whose checksums torch does not look at
                with zipfile.ZipFile(file) as archive:
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each kind of damage has its own
            raise AdapterError(
                f"{file}: damaged, or it holds more than tensors ({type(error).__name__}). Nothing "
                "in it was run."
            ) from error
        if isinstance(tensors, dict):
            wrapped = [tensors[key] for key in WRAPPERS if isinstance(tensors.get(key), dict)]
            tensors = wrapped[0] if wrapped else tensors
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and type(value) in (Tensor, nn.Parameter)
        for name, value in tensors.items()
    ):
        raise AdapterError(f"{file}: not a state dictionary, of tensors by name.")
    for name, value in tensors.items():
        if problem := _problem(value):
            raise AdapterError(f"{file}: {name} {problem}.")
    return {name: value.detach() for name, value in tensors.items()}, metadata


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names and values: 32 bits, against damage and not against malice."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        flat = tensors[name].detach().flatten().view(torch.uint8)
        value = zlib.crc32(flat.numpy().data, value)
    return f"{value:08x}"


def _problem(value: Tensor) -> str | None:
    """What is wrong with a tensor, wherever it belongs."""
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        return "is not a plain tensor (sparse, quantised or without values)"
    if value.is_complex() or (value.is_floating_point() and value.dtype not in FLOATS):
        return f"is of the type {str(value.dtype).removeprefix('torch.')}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "repeats its values"  # few bytes that may stand for any number
    if value.is_floating_point() and not value.float().isfinite().all():
        return "holds values that are not finite"
    return None


def _own_name(name: str) -> str:
    """A tensor's name in the model, from its name in PEFT's files."""
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    for theirs, ours in NAMES.items():
        if f".{name}".endswith(f".{theirs}"):
            return name.removesuffix(theirs) + ours
    return name


def _adapter(file: Path, tensors: dict[str, Tensor], alpha: Alpha, **about: Any) -> Adapter:
    """Sort tensors into updates, magnitudes, and what else there is."""
    layers: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if ".original_module." in name:  # what PEFT has put aside, and saved with bias="all"
            continue
        layer, _, part = _own_name(name).rpartition(".")
        own = layers.setdefault(layer, {}) if part.startswith("lora_") else others
        key = part if part.startswith("lora_") else _own_name(name)
        if key in own and not torch.equal(own[key], value):
            raise AdapterError(f"{file}: {name} is there twice.")
        own[key] = value
    updates: dict[str, Factors] = {}
    for layer, parts in layers.items():
        if unknown := parts.keys() - {"lora_A", "lora_B", "lora_magnitude_vector"}:
            raise AdapterError(f"{file}: {layer} has a {min(unknown)}, which lora_exp does not.")
        a, b = parts.get("lora_A"), parts.get("lora_B")
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise AdapterError(f"{file}: {layer} has no {missing}.")
        if min(a.ndim, b.ndim) < 2 or not a.numel() or not b.numel():
            raise AdapterError(f"{file}: {layer}: A and B are {list(a.shape)} and {list(b.shape)}.")
        if not all(part.is_floating_point() for part in parts.values()):
            raise AdapterError(f"{file}: {layer} holds integers.")
        updates[layer] = a, b
        for own in ("weight", "bias"):  # loralib's convolutions hold the plain one as `conv`
            if f"{layer}.conv.{own}" in others:
                others[f"{layer}.{own}"] = others.pop(f"{layer}.conv.{own}")
    if not updates:
        raise AdapterError(f"{file}: there is no lora_A in it.")
    magnitudes = {
        layer: parts["lora_magnitude_vector"]
        for layer, parts in layers.items()
        if "lora_magnitude_vector" in parts
    }
    alphas = {layer: alpha(layer) for layer in updates}
    return Adapter(updates, alphas, magnitudes, others, **about)
