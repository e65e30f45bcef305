"""An adapter apart from any model, and its way into one: all of it, or nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from lora_exp.lora.backbone import backbone_hash
from lora_exp.lora.base import Factors, LoraLayer
from lora_exp.lora.convolution import Convolution
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.linear import Linear, MergedLinear, is_transposed
from lora_exp.lora.placement import KINDS
from lora_exp.lora.presets import FUSED
from lora_exp.lora.state import lora_layers

SHOWN = 5
"""Most problems that a message lists."""

Fitting = dict[str, tuple[Tensor, Tensor, float]]
"""A, B and scaling of each update, in the form of its layer, by the layer's name."""


class AdapterError(ValueError):
    """An adapter that is damaged, or does not fit; the message says what is wrong."""


class OtherBackbone(AdapterError):
    """The adapter was trained on other weights than those of the model."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was read from a file, with the names and forms it has there."""

    updates: dict[str, Factors]
    """A and B by the name of their layer, in the form of PEFT or of loralib."""
    alphas: dict[str, float]
    """Of each update: its scaling is alpha / rank."""
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    """Those of DoRA, by the name of their layer."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """What else was trained, by its name in the model: the head, biases."""
    rslora: bool = False
    """The scaling is alpha / sqrt(rank)."""
    pissa: bool = False
    """The updates of linear layers replace the principal part of the weight (PEFT's PiSSA)."""
    base_model: str | None = None
    """Name or path of the backbone."""
    backbone: str | None = None
    """`backbone_hash` of its weights."""

    def named_for(self, model: nn.Module) -> Adapter:
        """The same adapter with the names that its layers have in this model.

        Files hold the names of the model that was trained: with or without a wrapper around the
        backbone (`roberta.`), and with what training scripts put in front (`module.`).

        Raises:
            AdapterError: if the layers could be these or those.
        """
        modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
        return self._named(modules, model.state_dict())

    def _named(self, modules: Collection[str], tensors: Collection[str] = ()) -> Adapter:
        strip, add = _prefixes(list(self.updates), set(modules))
        if not strip and not add:
            return self

        def layer(name: str) -> str:
            return add + name.removeprefix(strip)

        def other(name: str) -> str:  # the head stands outside of the backbone, perhaps
            parts = strip.split(".")[:-1]
            starts = ["", *(f"{part}." for part in accumulate(parts, "{}.{}".format))]
            names = [layer(name), *(name.removeprefix(start) for start in starts)]
            return next((one for one in names if one in tensors), name)

        return replace(
            self,
            updates={layer(name): update for name, update in self.updates.items()},
            alphas={layer(name): alpha for name, alpha in self.alphas.items()},
            magnitudes={layer(name): value for name, value in self.magnitudes.items()},
            others={other(name): value for name, value in self.others.items()},
        )

    def fit(self, layers: Mapping[str, LoraLayer]) -> Fitting:
        """The updates in the form of these layers.

        Raises:
            AdapterError: naming every layer that is missing, and every update that does not fit.
        """
        adapter = self._named(layers)
        found: Fitting = {}
        problems: list[str] = []
        for name in adapter.updates:
            try:
                if name not in layers:
                    near = _nearest(name, layers) if len(problems) < SHOWN else ""
                    raise ValueError(f"the model has no LoRA layer there{near}")
                found[name] = adapter._fit_one(name, layers[name])
            except (ValueError, RuntimeError) as error:  # of another number of values than expected
                problems.append(f"{name}: {str(error).splitlines()[0]}")
        _refuse(problems)
        return found

    def _fit_one(self, name: str, layer: LoraLayer) -> tuple[Tensor, Tensor, float]:
        a, b = self.updates[name]
        if "taken_A" in layer._buffers:
            raise ValueError("PiSSA took a part out of this weight; load before, or without it")
        magnitude = self.magnitudes.get(name)
        if isinstance(layer, DoraLinear) != (magnitude is not None):
            which = "has no magnitudes" if magnitude is None else "has magnitudes (DoRA)"
            raise ValueError(f"the adapter {which}, and the layer is a {type(layer).__name__}")
        if magnitude is not None and magnitude.shape != (layer.out_features,):
            raise ValueError(f"{list(magnitude.shape)} magnitudes for {layer.out_features} outputs")
        rank = len(a)
        if layer._is_own_form(a, b):  # of convolutions and fused layers, A has more rows
            rank, rest = divmod(layer.r * len(a), len(layer.lora_A))
            if rest:
                raise ValueError(f"{len(a)} rows of A are no whole rank")
        scaling = self.alphas[name] / (math.sqrt(rank) if self.rslora else rank)
        if self.pissa and isinstance(layer, Linear):
            taken_a, taken_b = (one.to(a.device) for one in _principal_part(layer, rank, scaling))
            a, b = torch.cat([a, taken_a]), torch.cat([b, -taken_b], dim=1)
        return *layer.fit(a, b), scaling


def load(
    model: nn.Module,
    adapter: Adapter,
    *,
    leave_out: Collection[str] = (),
    any_backbone: bool = False,
) -> None:
    """Give a model's LoRA layers, head and biases the adapter's values: all of them, or none.

    Layers that the adapter does not name keep theirs; a lower rank is filled up with zeros.

    Args:
        model: has LoRA layers wherever the adapter has an update.
        adapter: from `read`.
        leave_out: names of modules (the head) that keep their values.
        any_backbone: load it even if it was trained on other weights.

    Raises:
        OtherBackbone: if it was trained on other weights.
        AdapterError: if anything does not fit; nothing is changed.
    """
    layers, state = dict(lora_layers(model)), model.state_dict()
    _check_backbone(model, adapter, any_backbone)
    _put(layers, state, *_fitting(layers, state, adapter._named(layers, state), leave_out))


def attach(
    model: nn.Module,
    adapter: Adapter,
    *,
    slices: Sequence[str] = ("query", "value"),
    leave_out: Collection[str] = (),
    any_backbone: bool = False,
    merge_weights: bool = False,
) -> list[str]:
    """Place the LoRA layers that an adapter needs in a plain model, and load it.

    Args:
        model: changed in place.
        adapter: from `read`.
        slices: which slices of fused projections an adapter of loralib is for: its file has only
            their number. Names (`query`), or numbers from 0 where a layer is not known.
        leave_out: names of modules (the head) that keep their values.
        any_backbone: load it even if it was trained on other weights.
        merge_weights: `eval()` merges, `train()` unmerges.

    Returns:
        The names of the layers.

    Raises:
        OtherBackbone: if it was trained on other weights.
        AdapterError: if anything does not fit; nothing is changed.
    """
    modules, state = dict(model.named_modules(remove_duplicate=False)), model.state_dict()
    _check_backbone(model, adapter, any_backbone)
    adapter = adapter._named(modules, state)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers: dict[str, LoraLayer] = {}
    problems: list[str] = []
    try:
        for name in adapter.updates:
            try:
                kind, options = _layer(name, modules, adapter, slices, model)
                layers[name] = kind.wrap(modules[name], merge_weights=merge_weights, **options)
            except ValueError as error:
                problems.append(f"{name}: {error}")
                if len(problems) > SHOWN:
                    break
        _refuse(problems)
        fitting = _fitting(layers, state, adapter, leave_out)
    except Exception:
        for parameter in trained:  # the layers have frozen their weights
            parameter.requires_grad = True
        raise
    new = {modules[name]: layer for name, layer in layers.items()}
    for name, module in modules.items():
        if module in new:
            model.set_submodule(name, new[module])
    _put(layers, state, *fitting)
    for layer in layers.values():
        layer.train(layer.training)  # merged or not, as it is to be
    return list(layers)


# -- checking --------------------------------------------------------------------------------------


def _check_backbone(model: nn.Module, adapter: Adapter, any_backbone: bool) -> None:
    if adapter.backbone and not any_backbone and adapter.backbone != backbone_hash(model):
        own = getattr(model, "name_or_path", None) or f"this {type(model).__name__}"
        error = OtherBackbone(
            f"The adapter was trained on {adapter.base_model or 'a model'}, whose weights are not "
            f"those of {own}: its outputs would be wrong. Give the model that it was trained on."
        )
        error.add_note("any_backbone=True loads it all the same.")
        raise error


def _fitting(
    layers: Mapping[str, LoraLayer],
    state: Mapping[str, Tensor],
    adapter: Adapter,
    leave_out: Collection[str],
) -> tuple[Fitting, dict[str, Tensor]]:
    """What goes into the layers, and into other tensors of the model."""
    fitting = adapter.fit(layers)
    others = {f"{name}.lora_magnitude_vector": m for name, m in adapter.magnitudes.items()}
    problems = [
        f"{name}: rank {math.ceil(layer.r * rows / len(layer.lora_A))}, in the model {layer.r}"
        for name, layer in layers.items()
        if name in fitting and (rows := len(fitting[name][0])) > len(layer.lora_A)
    ]
    for name, value in adapter.others.items():
        layer, _, own = name.rpartition(".")
        if any(name.startswith(f"{module}.") for module in leave_out):
            continue
        if name not in state:
            near = _nearest(name, state) if len(problems) < SHOWN else ""
            problems.append(f"{name}: the model has no such tensor{near}")
        elif state[name].shape != value.shape:
            shapes = list(value.shape), list(state[name].shape)
            problems.append(f"{name}: {shapes[0]}, in the model {shapes[1]}")
        elif state[name].is_floating_point() != value.is_floating_point():
            problems.append(f"{name}: {value.dtype}, in the model {state[name].dtype}")
        elif own != "weight" or layer not in layers:
            others[name] = value
        elif not torch.equal(value.to(state[name]), state[name]):
            problems.append(f"{name}: not the weight that this model has below its update")
    _refuse(problems)
    return fitting, others


def _put(
    layers: Mapping[str, LoraLayer],
    state: Mapping[str, Tensor],
    fitting: Fitting,
    others: dict[str, Tensor],
) -> None:
    with torch.no_grad():
        for name, value in others.items():
            layer, _, own = name.rpartition(".")
            is_magnitude = own == "lora_magnitude_vector"
            (layers[layer].get_parameter(own) if is_magnitude else state[name]).copy_(value)
    for name, (a, b, scaling) in fitting.items():
        layers[name].put(a, b, scaling)


def _layer(
    name: str,
    modules: Mapping[str, nn.Module],
    adapter: Adapter,
    slices: Sequence[str],
    model: nn.Module,
) -> tuple[type[LoraLayer], dict[str, Any]]:
    """The kind of layer that an update needs, and the arguments of its `wrap`."""
    module = modules.get(name)
    if module is None or not name:
        raise AdapterError(f"the model has no such module{_nearest(name, modules)}")
    kind = Linear if is_transposed(module) else KINDS.get(type(module))
    if kind is None:
        what = "a LoRA layer already" if isinstance(module, LoraLayer) else type(module).__name__
        raise AdapterError(f"is {what}: only plain linear layers, embeddings and convolutions can")
    a, b = adapter.updates[name]
    rank = r = len(a)
    options: dict[str, Any] = {"rslora": adapter.rslora}
    if issubclass(kind, Convolution):  # in PEFT's form, a low rank may stand as a higher one
        first, _ = kind.wrap(module, r=1).fit(a, b)
        r = -(-len(first) // module.kernel_size[0])  # type: ignore[index]
        rank = r if a.ndim == 2 else rank
    elif kind is Linear:
        weight = module.get_parameter("weight")
        outputs = weight.shape[1 if is_transposed(module) else 0]
        if name in adapter.magnitudes:
            kind = DoraLinear
        elif len(a) != b.shape[1] or len(b) != outputs:
            kind, rank = MergedLinear, b.shape[1]
            options["enable_lora"] = _enabled_slices(name, a, b, outputs, slices, model)
        r = 2 * rank if adapter.pissa else rank  # with what the weight had there, see `_fit_one`
    more = r / rank
    alpha = adapter.alphas[name] * (math.sqrt(more) if adapter.rslora else more)
    return kind, options | {"r": r, "lora_alpha": alpha}


@torch.no_grad()
def _principal_part(layer: Linear, r: int, scaling: float) -> Factors:
    """A and B of what PiSSA takes out of a weight, as PEFT computes it when it loads."""
    weight = layer.base_weight.float()
    u, s, v = torch.linalg.svd(weight.T if layer.fan_in_fan_out else weight, full_matrices=False)
    root = (s[:r] / scaling).sqrt()
    return root[:, None] * v[:r], u[:, :r] * root


def _enabled_slices(
    name: str, a: Tensor, b: Tensor, outputs: int, slices: Sequence[str], model: nn.Module
) -> list[bool]:
    """Of each slice of a fused projection, whether an update in loralib's form is for it."""
    count, rest = divmod(len(a), b.shape[1])
    if rest or not count or len(b) % count or outputs % (len(b) // count):
        shapes = list(a.shape), list(b.shape)
        raise AdapterError(f"A and B are {shapes[0]} and {shapes[1]} for {outputs} outputs")
    total = outputs * count // len(b)
    if count == total:
        return [True] * total
    architectures, names = FUSED.get(name.rpartition(".")[2], ((), ()))
    architecture = getattr(getattr(model, "config", None), "model_type", None)
    if len(names) != total or architecture not in (None, *architectures):
        names = tuple(map(str, range(total)))
    enabled = [one in slices for one in names]
    if sum(enabled) != count or not set(slices) <= set(names):
        raise AdapterError(
            f"the update is for {count} of the {total} slices of this layer, {', '.join(names)}, "
            f"and the file does not say for which: slices={','.join(slices)} cannot be it"
        )
    return enabled


# -- names and messages ----------------------------------------------------------------------------


def _prefixes(names: Sequence[str], modules: Collection[str]) -> tuple[str, str]:
    """What to take from the front of all names, and what to put there, so that they are modules."""
    if not names or all(name in modules for name in names):
        return "", ""
    first, choices = names[0], set()
    for module in modules:
        if module.endswith(f".{first}"):
            choices.add(("", module.removesuffix(first)))
        elif module and first.endswith(f".{module}"):
            choices.add((first.removesuffix(module), ""))
    fitting = [
        (strip, add)
        for strip, add in sorted(choices)
        if all(
            name.startswith(strip) and add + name.removeprefix(strip) in modules for name in names
        )
    ]
    if len(fitting) > 1:
        both = " and ".join(add + first.removeprefix(strip) for strip, add in fitting[:2])
        raise AdapterError(f"{first} could be {both}: load it into the part it was trained in.")
    return fitting[0] if fitting else ("", "")


def _nearest(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (the nearest is {close[0]})" if close else ""


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = ["  and more"] if len(problems) > SHOWN else []
        lines = [f"  {problem}" for problem in problems[:SHOWN]]
        raise AdapterError("\n".join(["The adapter does not fit the model:", *lines, *more]))
