"""Which weights of a model get LoRA: presets known for an architecture, or patterns of names.

A pattern is matched against the end of a module's dotted name. `*` stands for any part of one name
between dots, `**` for anything, `[0-5]` for one of these characters:

    query                          every module called query
    layer.[0-5].attention.**.value the values of the first six layers
    attn.c_attn:query,value        slices of a projection that is fused in the model
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from torch import nn

from lora_exp.lora.layers import Linear, LoraLayer, MergedLinear, is_transposed

FUSED = ("query", "key", "value")
"""The slices of a fused projection, in their order (GPT-2's c_attn)."""

_BERT = {
    "qv": ["attention.self.query", "attention.self.value"],
    "attention": [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ],
    "mlp": ["layer.*.intermediate.dense", "layer.*.output.dense"],
}
_DEBERTA_V2 = {
    "qv": ["attention.self.query_proj", "attention.self.value_proj"],
    "attention": [
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
        "attention.output.dense",
    ],
    "mlp": ["layer.*.intermediate.dense", "layer.*.output.dense"],
}
_GPT2 = {
    "qv": ["attn.c_attn:query,value"],
    "attention": ["attn.c_attn:query,key,value", "attn.c_proj"],
    "mlp": ["mlp.c_fc", "mlp.c_proj"],
}
PRESETS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "gpt2": _GPT2,
}
"""Patterns by architecture (transformers' `model_type`) and by name of the preset."""


class PlacementError(ValueError):
    """A placement that does not fit the model; the message says what would."""


def preset(architecture: str, name: str) -> list[str]:
    """The patterns of a preset.

    Args:
        architecture: `config.model_type` of a transformers model.
        name: `qv`, `attention`, `mlp`, or `all_linear` for the last two together.

    Raises:
        PlacementError: for a preset, or an architecture, that is not known.
    """
    if architecture not in PRESETS:
        raise PlacementError(
            f"There are no presets for {architecture} models, only for {', '.join(PRESETS)}. "
            "Give the modules by name (targets)."
        )
    presets = PRESETS[architecture]
    presets = presets | {"all_linear": presets["attention"] + presets["mlp"]}
    if name not in presets:
        raise PlacementError(f"There is no preset {name!r}, but {', '.join(presets)}.")
    return presets[name]


def place(
    model: nn.Module,
    targets: Sequence[str],
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    leave: Collection[str] = (),
) -> list[str]:
    """Replace the modules that the patterns name by LoRA layers over the same weights.

    Args:
        model: changed in place.
        targets: patterns, see above.
        r: rank.
        alpha: numerator of the scaling alpha / r.
        dropout: on the input of A.
        leave: names of modules that no pattern reaches (they are trained in full).

    Returns:
        The names of the replaced modules.

    Raises:
        PlacementError: if a pattern matches nothing, or a slice is not known; nothing is replaced.
    """
    layers: dict[str, LoraLayer] = {}
    known = {
        name: module
        for name, module in model.named_modules()
        if name not in leave and (isinstance(module, nn.Linear) or is_transposed(module))
    }
    for target in targets:
        pattern, _, slices = target.partition(":")
        expression = _expression(pattern)
        matching = [name for name in known if expression.fullmatch(name)]
        if not matching:
            raise PlacementError(
                f"{pattern!r} matches no layer of this model. {_help(pattern, known)}"
            )
        arguments = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout}
        for name in matching:
            if name in layers:
                raise PlacementError(f"{target!r} names {name}, which another pattern names too.")
            if slices:
                enabled = _enabled(target, slices, known[name])
                layers[name] = MergedLinear.wrap(known[name], enable_lora=enabled, **arguments)
            else:
                layers[name] = Linear.wrap(known[name], **arguments)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return list(layers)


def _enabled(target: str, slices: str, module: nn.Module) -> list[bool]:
    wanted = [word.strip() for word in slices.split(",")]
    if unknown := [word for word in wanted if word not in FUSED]:
        raise PlacementError(f"{target!r}: no slice {unknown[0]!r}; there are {', '.join(FUSED)}.")
    shape = sorted(module.get_parameter("weight").shape)
    if shape[1] != len(FUSED) * shape[0]:
        raise PlacementError(
            f"{target!r}: this layer does not hold {', '.join(FUSED)} side by side."
        )
    return [name in wanted for name in FUSED]


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\[[^\]]*\])", pattern)
    known = {"**": r".*", "*": r"[^.]*"}
    regular = (known.get(p, p if p.startswith("[") else re.escape(p)) for p in parts)
    try:
        return re.compile(r"(?:.*\.)?" + "".join(regular))
    except re.error as error:
        raise PlacementError(f"{pattern!r} is not a pattern: {error}.") from error


def _help(pattern: str, known: dict[str, nn.Module]) -> str:
    """The layers that exist, those of equal layers as one line, nearest names first."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in known)
    last = {name.rsplit(".", 1)[-1] for name in known}
    close = get_close_matches(pattern.rsplit(".", 1)[-1], sorted(last), n=3)
    guess = f"Did you mean {' or '.join(close)}? " if close else ""
    lines = "\n".join(
        f"  {name}" + (f"  ({n} times)" if n > 1 else "") for name, n in counts.items()
    )
    return f"{guess}There are:\n{lines}"
