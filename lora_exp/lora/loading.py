"""An adapter apart from any model, and its way into one: all of it, or nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lora_exp.lora.base import Factors, LoraLayer
from lora_exp.lora.convolution import Convolution
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.linear import Linear, MergedLinear, is_transposed
from lora_exp.lora.placement import KINDS, install
from lora_exp.lora.presets import FUSED
from lora_exp.lora.state import lora_layers

SHOWN = 5
"""Most problems that a message lists."""
Fitting = dict[str, tuple[Tensor, Tensor, float]]
"""A, B and scaling of each update, in the form of its layer, by the layer's name."""
_hashes: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


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
        strip, add = _prefixes(list(self.updates), modules)
        if not strip and not add:
            return self

        def layer(name: str) -> str:
            return add + name.removeprefix(strip)

        def other(name: str) -> str:  # the head stands outside of the backbone, perhaps
            ends = [i for i in range(len(strip) + 1) if i == 0 or strip[i - 1] == "."]
            names = [layer(name), *(name.removeprefix(strip[:end]) for end in ends)]
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
            AdapterError: naming the layers that are missing, and the updates that do not fit.
        """
        adapter = self._named(layers)
        return _each(adapter.updates, lambda name: adapter._fit_one(name, layers))

    def _fit_one(self, name: str, layers: Mapping[str, LoraLayer]) -> tuple[Tensor, Tensor, float]:
        if name not in layers:
            raise ValueError(f"the model has no LoRA layer there{_nearest(name, layers)}")
        layer, (a, b), magnitude = layers[name], self.updates[name], self.magnitudes.get(name)
        if "taken_A" in layer._buffers:
            raise ValueError("PiSSA took a part out of this weight; load before, or without it")
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
        return *layer.fit(a, b), self.alphas[name] / (math.sqrt(rank) if self.rslora else rank)


def load(
    model: nn.Module,
    adapter: Adapter,
    *,
    leave_out: Collection[str] = (),
    any_backbone: bool = False,
) -> None:
    """Give a model's LoRA layers, head and biases the adapter's values: all of them, or none.

    Layers that the adapter does not name keep theirs.

    Args:
        model: has LoRA layers wherever the adapter has an update.
        adapter: from `read`.
        leave_out: names of modules (the head) that keep their values.
        any_backbone: load it even if it was trained on other weights.

    Raises:
        OtherBackbone: if it was trained on other weights.
        AdapterError: if anything does not fit; nothing is changed.
    """
    check_backbone(model, adapter, any_backbone)
    layers, state = dict(lora_layers(model)), model.state_dict()
    _checked(layers, state, adapter._named(layers, state), leave_out)()


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
        leave_out: as in `load`.
        any_backbone: as in `load`.
        merge_weights: `eval()` merges, `train()` unmerges.

    Returns:
        The names of the layers.

    Raises:
        OtherBackbone: if it was trained on other weights.
        AdapterError: if anything does not fit; nothing is changed.
    """
    check_backbone(model, adapter, any_backbone)
    modules, state = dict(model.named_modules(remove_duplicate=False)), model.state_dict()
    adapter = adapter._named(modules, state)
    architecture = getattr(getattr(model, "config", None), "model_type", None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def wrap(name: str) -> LoraLayer:
        if not name or name not in modules:
            raise ValueError(f"the model has no such module{_nearest(name, modules)}")
        kind, options = _layer(name, modules[name], adapter, slices, architecture)
        return kind.wrap(modules[name], merge_weights=merge_weights, **options)

    try:
        layers = _each(adapter.updates, wrap)
        put = _checked(layers, state, adapter, leave_out)
    except Exception:
        for parameter in trained:  # the layers have frozen their weights
            parameter.requires_grad = True
        raise
    new = {modules[name]: layer for name, layer in layers.items()}
    install(model, {name: new[module] for name, module in modules.items() if module in new})
    put()
    for layer in layers.values():
        layer.train(layer.training)  # merged or not, as it is to be
    return list(layers)


def backbone_hash(model: nn.Module) -> str:
    """SHA-256 of a model's pre-trained weights: names, shapes and values, rounded to bfloat16.

    It is the same with LoRA layers or without, merged or not, in float32 or bfloat16 (not float16),
    and under any head of transformers. Biases and poolers are left out: they may belong to an
    adapter or a head. It is remembered until a weight is changed or replaced.

    Args:
        model: of a transformers model the pre-trained part counts, of any other all of it.
    """
    prefix = getattr(model, "base_model_prefix", None)
    inner: nn.Module = getattr(model, prefix, model) if isinstance(prefix, str) else model
    weights = {
        f"{name}.{own}": module.base_weight
        if isinstance(module, LoraLayer) and own == "weight"
        else parameter
        for name, module in sorted(inner.named_modules())
        for own, parameter in module.named_parameters(recurse=False)
        if own != "bias" and not own.startswith("lora_") and "pooler" not in name.split(".")
    }
    versions = [
        (name, id(one), one.data_ptr(), None if one.is_inference() else one._version)
        for name, one in weights.items()
    ]
    remembered, found = _hashes.get(inner, ((), ""))
    if remembered == versions:
        return found
    digest = hashlib.sha256()
    for name, parameter in weights.items():
        digest.update(f"{name} {list(parameter.shape)};".encode())
        rounded = parameter.detach().to(torch.bfloat16).cpu().flatten()
        digest.update(rounded.view(torch.uint8).numpy().data)
    _hashes[inner] = versions, digest.hexdigest()
    return digest.hexdigest()


def check_backbone(model: nn.Module, adapter: Adapter, any_backbone: bool) -> None:
    """Raise `OtherBackbone` if the adapter was trained on other weights, unless any will do."""
    if adapter.backbone and not any_backbone and adapter.backbone != backbone_hash(model):
        own = getattr(model, "name_or_path", None) or f"this {type(model).__name__}"
        error = OtherBackbone(
            f"The adapter was trained on {adapter.base_model or 'a model'}, whose weights are not "
            f"those of {own}: its outputs would be wrong. Give the model that it was trained on."
        )
        error.add_note("any_backbone=True loads it all the same.")
        raise error


def _checked(
    layers: Mapping[str, LoraLayer],
    state: Mapping[str, Tensor],
    adapter: Adapter,
    leave_out: Collection[str],
) -> Callable[[], None]:
    """What puts an adapter that fits into the layers, and into other tensors of the model."""
    fitting = adapter.fit(layers)
    weights = {f"{name}.weight" for name in layers}
    left = tuple(f"{module}." for module in leave_out)
    others = {name: t for name, t in adapter.others.items() if not name.startswith(left)}

    def check_rank(name: str) -> None:
        layer, rows = layers[name], len(fitting[name][0])
        if rows > len(layer.lora_A):
            rank = math.ceil(layer.r * rows / len(layer.lora_A))
            raise ValueError(f"rank {rank}, in the model {layer.r}")

    def check(name: str) -> None:
        value, own = others[name], state.get(name)
        if own is None:
            raise ValueError(f"the model has no such tensor{_nearest(name, state)}")
        if own.shape != value.shape:
            raise ValueError(f"{list(value.shape)}, in the model {list(own.shape)}")
        if own.is_floating_point() != value.is_floating_point():
            raise ValueError(f"{value.dtype}, in the model {own.dtype}")
        if name in weights and not torch.equal(value.to(own), own):
            raise ValueError("not the weight that this model has below its update")

    @torch.no_grad()
    def put() -> None:
        for name in others.keys() - weights:
            state[name].copy_(others[name])
        for name, value in adapter.magnitudes.items():
            layers[name].get_parameter("lora_magnitude_vector").copy_(value)
        for name, update in fitting.items():
            layers[name].put(*update)

    _each(fitting, check_rank)
    _each(others, check)
    return put


def _layer(
    name: str, module: nn.Module, adapter: Adapter, slices: Sequence[str], architecture: str | None
) -> tuple[type[LoraLayer], dict[str, Any]]:
    """The kind of layer that an update needs, and the arguments of its `wrap`."""
    kind = Linear if is_transposed(module) else KINDS.get(type(module))
    if kind is None:
        what = "a LoRA layer already" if isinstance(module, LoraLayer) else type(module).__name__
        raise ValueError(f"is {what}: only plain linear layers, embeddings and convolutions can")
    a, b = adapter.updates[name]
    options: dict[str, Any] = {"r": len(a), "lora_alpha": adapter.alphas[name]}
    if issubclass(kind, Convolution):  # in PEFT's form, a low rank may stand as a higher one
        first, _ = kind.wrap(module, r=1).fit(a, b)
        r = -(-len(first) // module.kernel_size[0])  # type: ignore[index]
        more = 1 if a.ndim == 2 else r / len(a)
        options = {"r": r, "lora_alpha": options["lora_alpha"] * more ** (1 - adapter.rslora / 2)}
    elif kind is Linear:
        weight = module.get_parameter("weight")
        outputs = weight.shape[1 if is_transposed(module) else 0]
        if name in adapter.magnitudes:
            kind = DoraLinear
        elif len(a) != b.shape[1] or len(b) != outputs:
            known = FUSED.get(name.rpartition(".")[2], ((), ()))
            names = known[1] if architecture in (None, *known[0]) else ()
            enabled = _enabled_slices(a, b, outputs, slices, names)
            kind, options = MergedLinear, options | {"r": b.shape[1], "enable_lora": enabled}
    return kind, options | {"rslora": adapter.rslora}


def _enabled_slices(
    a: Tensor, b: Tensor, outputs: int, slices: Sequence[str], names: Sequence[str]
) -> list[bool]:
    """Of each slice of a fused projection, whether an update in loralib's form is for it."""
    count, rest = divmod(len(a), b.shape[1])
    if rest or not count or len(b) % count or outputs % (len(b) // count):
        raise ValueError(f"A and B are {list(a.shape)} and {list(b.shape)} for {outputs} outputs")
    total = outputs * count // len(b)
    if count == total:
        return [True] * total
    names = names if len(names) == total else [str(number) for number in range(total)]
    enabled = [one in slices for one in names]
    if sum(enabled) != count or not set(slices) <= set(names):
        raise ValueError(
            f"the update is for {count} of the {total} slices of this layer, {', '.join(names)}, "
            f"and the file does not say for which: slices={','.join(slices)} cannot be it"
        )
    return enabled


def _prefixes(names: Sequence[str], modules: Collection[str]) -> tuple[str, str]:
    """What to take from the front of all names, and what to put there, so that they are modules."""
    if all(name in modules for name in names):
        return "", ""
    first, known = names[0], set(modules)
    choices = {("", one.removesuffix(first)) for one in known if one.endswith(f".{first}")}
    choices |= {(first.removesuffix(one), "") for one in known if first.endswith(f".{one}") and one}
    fitting = [
        (strip, add)
        for strip, add in sorted(choices)
        if all(n.startswith(strip) and add + n.removeprefix(strip) in known for n in names)
    ]
    if len(fitting) > 1:
        both = " and ".join(add + first.removeprefix(strip) for strip, add in fitting[:2])
        raise AdapterError(f"{first} could be {both}: load it into the part it was trained in.")
    return fitting[0] if fitting else ("", "")


def _nearest(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (the nearest is {close[0]})" if close else ""


def _each(names: Iterable[str], act: Callable[[str], Any]) -> dict[str, Any]:
    """What comes of each; the first problems are told together."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name in names:
        try:
            found[name] = act(name)
        except (ValueError, RuntimeError) as error:  # of another number of values than expected
            problems.append(f"  {name}: {str(error).splitlines()[0]}")
            if len(problems) > SHOWN:
                problems[SHOWN:] = ["  and more"]
                break
    if problems:
        raise AdapterError("\n".join(["The adapter does not fit the model:", *problems]))
    return found
