"""Which weights of a model get LoRA: patterns of names, and what to say where they do not fit.

A pattern is matched against the end of a module's dotted name. `*` stands for any part of one name
between dots, `**` for anything, `[0-5]` for one of these characters, `{a,b}` for any of these:

    query                          every module called query
    layer.[0-5].attention.**.value the values of the first six layers
    attn.c_attn:query,value        slices of a projection that is fused in the model
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from lora_exp.lora.base import LoraLayer
from lora_exp.lora.convolution import Conv1d, Conv2d, Conv3d
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.embedding import Embedding
from lora_exp.lora.linear import Linear, MergedLinear, is_transposed
from lora_exp.lora.presets import FUSED, QKV, PlacementError

KINDS: dict[type[nn.Module], type[LoraLayer]] = {
    nn.Linear: Linear,
    nn.Embedding: Embedding,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}
"""What can get LoRA. Exactly these types: a subclass may compute something else (Gemma's embedding
scales its output), or not be called at all (out_proj of torch's MultiheadAttention)."""

Names = tuple[str, ...]
"""All names of one module, that of `named_modules` first; tied modules have several."""


def place(
    model: nn.Module,
    targets: Sequence[str],
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    leave: Collection[str] = (),
    layers: str | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    rslora: bool = False,
    dora: bool = False,
    merge_weights: bool = False,
) -> list[str]:
    """Replace the modules that the patterns name by LoRA layers over the same weights.

    Args:
        model: changed in place; a module that has several names is replaced under all of them.
        targets: patterns, see above.
        r: rank.
        alpha: numerator of the scaling alpha / r.
        dropout: on the input of A; embeddings have none.
        leave: names of modules that no pattern reaches (they are trained in full).
        layers: numbers of the layers to reach, such as `0-5` or `0,2,6-11`; None reaches all. The
            number of a module is the first between the dots of its name.
        rank_pattern: other ranks, by patterns of layers or slices; 0 leaves them as they are.
        alpha_pattern: other alphas, likewise.
        rslora: the scaling is alpha / sqrt(r).
        dora: `DoraLinear` instead of `Linear`.
        merge_weights: `eval()` merges, `train()` unmerges.

    Returns:
        The names of the replaced modules.

    Raises:
        PlacementError: if something does not fit the model; nothing is replaced.
    """
    modules = _modules(model, leave)
    chosen, config = _chosen(targets, modules, layers), getattr(model, "config", None)
    widths: dict[Names, dict[str, int]] = {}
    for names, target in chosen.items():
        if dora and (":" in target or _kind(modules[names]) is not Linear):
            raise PlacementError(
                f"{target!r}: DoRA cannot be combined with slices of a fused projection, "
                "embeddings or convolutions. Name linear layers, whole ones, or leave DoRA out."
            )
        widths[names] = _slices(target, names[0], modules[names], config) if ":" in target else {}
    parts = {names: target.partition(":")[2].split(",") for names, target in chosen.items()}
    ranks = _values("rank_pattern", r, rank_pattern or {}, parts)
    alphas = _values("alpha_pattern", alpha, alpha_pattern or {}, parts)
    if mixed := [names[0] for names, own in alphas.items() if len(set(own.values())) > 1]:
        raise PlacementError(f"alpha_pattern: the slices of {mixed[0]} must have one alpha.")
    options = {"lora_dropout": dropout, "rslora": rslora, "merge_weights": merge_weights}
    replaced: dict[Names, LoraLayer] = {}
    for names, own in ranks.items():
        if any(own.values()):
            options["lora_alpha"] = next(iter(alphas[names].values()))
            replaced[names] = _wrap(modules[names], own, widths[names], dora, **options)
    if not replaced:
        raise PlacementError("No layer gets LoRA: every rank is 0, or there are no targets.")
    install(model, {name: layer for names, layer in replaced.items() for name in names})
    return [names[0] for names in replaced]


def install(model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """Put layers in the places of these names."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    for module in model.modules():
        if any(isinstance(inner, LoraLayer) for inner in module.modules()):
            # In inference, these read weights past their layers.
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            elif isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False


def _modules(model: nn.Module, leave: Collection[str]) -> dict[Names, nn.Module]:
    """The modules inside a model, but for those that are left."""
    known: dict[nn.Module, Names] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known[module] = (*known.get(module, ()), name)
    del known[model]
    left = tuple(f"{name}." for name in leave)
    return {n: m for m, n in known.items() if not any(f"{name}.".startswith(left) for name in n)}


def _kind(module: nn.Module) -> type[LoraLayer] | None:
    return Linear if is_transposed(module) else KINDS.get(type(module))


def _chosen(
    targets: Sequence[str], modules: dict[Names, nn.Module], layers: str | None
) -> dict[Names, str]:
    """The layers that get LoRA, and the target that names each."""
    able = [n for n, module in modules.items() if _kind(module) or isinstance(module, LoraLayer)]
    reachable = able if layers is None else _in_layers(layers, able)
    chosen: dict[Names, str] = {}
    for target in targets:
        pattern, _, _ = target.partition(":")
        matching = _matching(pattern, reachable)
        for names in matching:
            if isinstance(modules[names], LoraLayer):
                raise PlacementError(f"{target!r} names {names[0]}, which is a LoRA layer already.")
            other = chosen.setdefault(names, target)
            if other != target:
                raise PlacementError(f"{target!r} names {names[0]}, which {other!r} names too.")
        if not matching:
            types = sorted({type(modules[n]).__name__ for n in _matching(pattern, modules)})
            where = f" in layers={layers}" if layers else ""
            what = f"only plain linear layers, embeddings and convolutions{where} get LoRA"
            why = f"names {', '.join(types)}: {what}" if types else "matches no layer of this model"
            raise PlacementError(f"{pattern!r} {why}. {_help(pattern, reachable)}")
    return chosen


def _in_layers(layers: str, modules: Iterable[Names]) -> list[Names]:
    """The modules of the layers in a range."""
    matches = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in layers.split(",")]
    ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) if m else range(0) for m in matches]
    digits = re.compile(r"(?<![^.])\d+(?![^.])")
    numbers = {n: int(found[0]) for n in modules if (found := digits.search(n[0]))}
    wanted, existing = set[int]().union(*ranges), set(numbers.values())
    there = ", ".join(map(str, sorted(existing))) or "none with numbers"
    if not all(ranges):
        raise PlacementError(f"layers={layers}: must be like 0-5 or 0,2,6-11; there are {there}.")
    if missing := sorted(wanted - existing):
        raise PlacementError(f"layers={layers}: there is no layer {missing[0]}; there are {there}.")
    return [names for names, number in numbers.items() if number in wanted]


def _slices(target: str, name: str, module: nn.Module, config: Any) -> dict[str, int]:
    """All slices of a fused layer, in their order, and the outputs of each."""
    architectures, slices = FUSED.get(name.rpartition(".")[2], ((), ()))
    fused = getattr(config, "model_type", None) in (None, *architectures)  # None: one's own model
    weight = module.get_parameter("weight")
    outputs, inputs, *_ = weight.T.shape if is_transposed(module) else weight.shape
    widths = [outputs // 2] * 2
    if slices == QKV:  # with grouped queries, key and value are narrower
        heads = getattr(config, "num_attention_heads", None) or 1
        width = getattr(config, "head_dim", None) or inputs // heads
        others = width * (getattr(config, "num_key_value_heads", None) or heads)
        widths = [heads * width, others, others]
    if not (slices and fused and _kind(module) is Linear and sum(widths) == outputs):
        known = ", ".join(f"{layer} of {of[0]}" for layer, (of, _) in FUSED.items())
        raise PlacementError(f"{target!r}: {name} is not known to have slices; {known} are.")
    if unknown := [word for word in target.partition(":")[2].split(",") if word not in slices]:
        raise PlacementError(f"{target!r}: no slice {unknown[0]!r}; there are {', '.join(slices)}.")
    return dict(zip(slices, widths, strict=True))


def _values(
    option: str, general: float, given: Mapping[str, float], parts: dict[Names, list[str]]
) -> dict[Names, dict[str, Any]]:
    """The value of each slice: what a pattern gives it, or the general one."""
    values = {names: dict.fromkeys(own, general) for names, own in parts.items()}
    givers: dict[tuple[Names, str], str] = {}
    for key, value in given.items():
        if value < 0:
            raise PlacementError(f"{option}: {key!r}: {value} is below 0.")
        pattern, _, slices = key.partition(":")
        matching = _matching(pattern, parts)
        for word in slices.split(","):
            reached = [(n, part) for n in matching for part in parts[n] if word in ("", part)]
            if not reached:
                help = _help(pattern, parts)
                raise PlacementError(f"{option}: {key!r} matches nothing that gets LoRA. {help}")
            for names, part in reached:
                other = givers.setdefault((names, part), key)
                if given[other] != value:
                    raise PlacementError(f"{option}: {other!r} and {key!r} disagree on {names[0]}.")
                values[names][part] = value
    return values


def _wrap(
    module: nn.Module, ranks: dict[str, int], widths: dict[str, int], dora: bool, **options: Any
) -> LoraLayer:
    """The LoRA layer in place of a module."""
    if widths:
        options |= {"enable_lora": [p in ranks for p in widths], "slice_widths": [*widths.values()]}
        return MergedLinear.wrap(module, r=[ranks.get(part, 0) for part in widths], **options)
    kind = DoraLinear if dora else KINDS.get(type(module), Linear)
    if kind is Embedding:
        del options["lora_dropout"]
    return kind.wrap(module, r=ranks[""], **options)


def _matching(pattern: str, modules: Iterable[Names]) -> list[Names]:
    """The modules that a pattern names."""
    known = {"**": r".*", "*": r"[^.]*", "{": "(?:", "}": ")"}
    regular, depth = r"(?:.*\.)?", 0
    for part in re.split(r"(\*\*|\*|\[[^\]]*\]|[{},])", pattern):
        depth += (part == "{") - (part == "}")
        known[","] = "|" if depth else ","
        regular += known.get(part, part if part.startswith("[") else re.escape(part))
    try:
        expression = re.compile(regular)
    except re.error as error:
        raise PlacementError(f"{pattern!r} is not a pattern: {error}.") from error
    return [names for names in modules if any(map(expression.fullmatch, names))]


def _help(pattern: str, known: Iterable[Names]) -> str:
    """The layers that exist, those of equal layers as one line, nearest names first."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", names[0]) for names in known)
    last = sorted({name.rsplit(".", 1)[-1] for name in counts})
    close = get_close_matches(pattern.rsplit(".", 1)[-1], last, n=3)
    guess = f"Did you mean {' or '.join(close)}? " if close else ""
    lines = "\n".join(f"  {name}" + f"  ({n} times)" * (n > 1) for name, n in counts.items())
    return f"{guess}There are:\n{lines}"
