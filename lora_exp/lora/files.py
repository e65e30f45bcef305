"""Adapters as files: PEFT's folders and loralib's state dictionaries are read. Nothing is run.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The latter's metadata have the
hash of the backbone's weights, so that a wrong backbone is noticed (`writing.py`).
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from lora_exp.lora.base import Factors
from lora_exp.lora.loading import Adapter, AdapterError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model it wraps."""
BACKBONE, CHECKSUM = "backbone_sha256", "checksum"
"""Where the hash of the backbone and the checksum stand among the metadata of the weights."""
WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Where training scripts keep the state dictionary among other things."""
DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
"""What safetensors calls the types."""
EXPECTED: dict[str, tuple[Any, str]] = {
    "use_rslora": (bool, "true or false"),
    "use_dora": (bool, "true or false"),
    "base_model_name_or_path": (str | None, "a name"),
    "alpha_pattern": (dict | None, "a mapping"),
}
"""Types of what is read in PEFT's config."""
HARMLESS = {
    *("auto_mapping", "bias", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "modules_to_save", "rank_pattern", "runtime_config"),
    *("target_modules", "init_lora_weights", *EXPECTED),
}
"""What may be set there: the tensors say the same, or it is read here. Other switches change the
output (`use_qalora`, `lora_bias`), or may do so in a PEFT to come."""
STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""PEFT's initialisations, besides the usual one, that leave the weights as they are."""
STEPS = 1e9
"""Most that matching the patterns of a config may take."""
Sorted = tuple[dict[str, Factors], dict[str, Tensor], dict[str, Tensor]]


def read(path: str | Path, *, alpha: float | None = None) -> Adapter:
    """An adapter from a folder of PEFT, or a state dictionary of loralib (`.bin`, `.pt`).

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
        updates, magnitudes, others = _sorted(path, _tensors(path)[0])
        return Adapter(updates, dict.fromkeys(updates, alpha), magnitudes, others)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _read_peft(folder: Path) -> Adapter:
    config = _config(folder / CONFIG)
    file = next((folder / one for one in (WEIGHTS, PICKLE) if (folder / one).exists()), None)
    if file is None:
        raise AdapterError(f"{folder}: there is no {WEIGHTS} in it.")
    tensors, metadata = _tensors(file)
    updates, magnitudes, others = _sorted(file, tensors)
    dora = config.get("use_dora", False)
    for layer in updates:
        if dora != (layer in magnitudes):
            raise AdapterError(
                f"{file}: use_dora is {str(dora).lower()} in {CONFIG}, but {layer} has "
                f"{'no' if dora else 'a'} lora_magnitude_vector."
            )
    return Adapter(
        updates,
        _alphas(folder / CONFIG, config, updates),
        magnitudes,
        others,
        rslora=config.get("use_rslora", False),
        base_model=config.get("base_model_name_or_path"),
        backbone=metadata.get(BACKBONE),
    )


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
    for key, value in config.items():
        expected, what = EXPECTED.get(key, (object, ""))
        if not isinstance(value, expected):
            raise AdapterError(f"{file}: {key} is {value!r}, not {what}.")
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


def _alphas(file: Path, config: dict[str, Any], layers: Collection[str]) -> dict[str, float]:
    """Each layer's alpha: that of the first pattern that matches, as in PEFT."""
    patterns: list[tuple[re.Pattern[str], Any]] = []
    steps, longest = 0, max(map(len, layers))
    for key, value in (config.get("alpha_pattern") or {}).items():
        repeats, groups = (sum(map(key.count, signs)) for signs in ("*+?{", "("))
        steps += len(layers) * longest**repeats * (1 + key.count("|")) ** groups
        if steps > STEPS or re.search(r"\)[*+?{]|\(\?(?!:)", key):
            raise AdapterError(f"{file}: alpha_pattern: {key[:99]!r}: matching could take forever.")
        try:
            patterns.append((re.compile(rf"(.*\.)?({key})$"), value))
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterError(f"{file}: alpha_pattern: {key!r}: {error}.") from error
    alphas: dict[str, float] = {}
    for layer in layers:
        value: Any
        value = next((v for key, v in patterns if key.match(layer)), config.get("lora_alpha"))
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise AdapterError(f"{file}: lora_alpha is {value!r}, not a number.")
        alphas[layer] = float(value)
    return alphas


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and its metadata."""
    tensors, metadata = (_unpickled(file), {}) if file.suffix != ".safetensors" else _opened(file)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and type(value) in (Tensor, nn.Parameter)
        for name, value in tensors.items()
    ):
        raise AdapterError(f"{file}: not a state dictionary, of tensors by name.")
    for name, value in tensors.items():
        if problem := _problem(value):
            raise AdapterError(f"{file}: {name} {problem}.")
    return {name.removeprefix(PREFIX): value.detach() for name, value in tensors.items()}, metadata


def _opened(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise AdapterError(f"{file}: damaged or incomplete ({error}).") from error
    parts = {name: raw(value) for name, value in tensors.items()}
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(parts):
        raise AdapterError(f"{file}: damaged (its checksum is another).")
    return tensors, metadata


def _unpickled(file: Path) -> Any:
    file.open("rb").close()  # the system's own reasons not to read it go their way
    try:
        if zipfile.is_zipfile(file):  # whose checksums torch does not look at
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own
        raise AdapterError(
            f"{file}: damaged, or it holds more than tensors ({type(error).__name__}). Nothing "
            "in it was run."
        ) from error
    inner = [found.get(key) for key in WRAPPERS] if isinstance(found, dict) else []
    return next((one for one in inner if isinstance(one, dict)), found)


def checksum(parts: Mapping[str, memoryview]) -> str:
    """Of names and values: against damage and not against malice. Sums are far faster than CRCs."""
    value = 0
    for name in sorted(parts):
        bytes_ = np.frombuffer(parts[name], np.uint8)
        words = len(bytes_) // 8 * 8
        total = int(bytes_[:words].view(np.uint64).sum()), int(bytes_[words:].sum())
        value = zlib.crc32(f"{name} {total}".encode(), value)
    return f"{value:08x}"


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values."""
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().data


def _problem(value: Tensor) -> str | None:
    """What is wrong with a tensor, wherever it belongs."""
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        return "is not a plain tensor (sparse, quantised or without values)"
    if value.dtype not in DTYPES:
        return f"is of the type {str(value.dtype).removeprefix('torch.')}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "repeats its values"  # few bytes that may stand for any number
    # A sum is quickly computed, and finite only if all values are.
    if value.is_floating_point() and not (value.sum().isfinite() or value.isfinite().all()):
        return "holds values that are not finite"
    return None


def _sorted(file: Path, tensors: dict[str, Tensor]) -> Sorted:
    """Updates and magnitudes by layer, and what else there is, by its name in the model."""
    layers: dict[str, dict[str, Tensor]] = {}
    updates, magnitudes, others = {}, {}, {}
    for name, value in tensors.items():
        if ".original_module." in name:  # what PEFT has put aside, and saved with bias="all"
            continue
        own = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        layer, is_lora, part = f".{own}".rpartition(".lora_")
        key = part.removesuffix(".weight").removeprefix("embedding_") if is_lora else own
        into = layers.setdefault(layer[1:], {}) if is_lora else others
        if key in into and not torch.equal(into[key], value):
            raise AdapterError(f"{file}: {name} is there twice.")
        into[key] = value
    if not layers:
        raise AdapterError(f"{file}: there is no lora_A in it.")
    for layer, parts in layers.items():
        if unknown := parts.keys() - {"A", "B", "magnitude_vector"}:
            part = f"lora_{min(unknown)}"
            raise AdapterError(f"{file}: {layer} has a {part}, which lora_exp does not.")
        if missing := {"A", "B"} - parts.keys():
            raise AdapterError(f"{file}: {layer} has no lora_{min(missing)}.")
        a, b = parts["A"], parts["B"]
        if min(a.ndim, b.ndim) < 2 or not a.numel() or not b.numel():
            raise AdapterError(f"{file}: {layer}: A and B are {list(a.shape)} and {list(b.shape)}.")
        if not all(part.is_floating_point() for part in parts.values()):
            raise AdapterError(f"{file}: {layer} holds integers.")
        for own in ("weight", "bias"):  # loralib's convolutions hold the plain one as `conv`
            if f"{layer}.conv.{own}" in others:
                others[f"{layer}.{own}"] = others.pop(f"{layer}.conv.{own}")
        updates[layer] = a, b
        if "magnitude_vector" in parts:
            magnitudes[layer] = parts["magnitude_vector"]
    return updates, magnitudes, others
