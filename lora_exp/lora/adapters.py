"""Several adapters on one model: switched in place, combined, or each row of a batch its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_exp.lora.base import LoraLayer
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.loading import Adapter, AdapterError, check_backbone
from lora_exp.lora.state import lora_layers


@dataclass(frozen=True)
class _Update:
    """One adapter in one layer."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float


class Adapters:
    """Adapters by name, for the LoRA layers of a model.

    Each has parameters of its own, of the type and on the device that the layers have when it is
    added. The layers' own lora_A and lora_B are a window: `switch` copies an adapter into it. To
    train adapters, several of them in one batch if need be, name the rows:

        adapters = lora.Adapters(model)
        adapters.add("rte", lora.read("outputs/rte/adapter"))
        adapters.add("mrpc", lora.read("outputs/mrpc/adapter"))
        adapters.switch("rte")
        with adapters.rows(["rte", "mrpc", "rte"]):
            output = model(batch_of_three)

    Args:
        model: has LoRA layers.

    Raises:
        AdapterError: for layers of DoRA, whose magnitudes belong to one adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.layers = model, dict(lora_layers(model))
        self._updates: dict[str, dict[LoraLayer, _Update]] = {}
        for name, layer in self.layers.items():
            if isinstance(layer, DoraLinear):
                raise AdapterError(f"{name} is a DoRA layer: it holds one adapter, not several.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._updates)

    def add(self, name: str, adapter: Adapter | None = None, *, any_backbone: bool = False) -> None:
        """Take in an adapter: its updates, not what else it may hold (a head, biases).

        Args:
            name: not taken yet.
            adapter: for all of the layers or some; None is a copy of what the layers hold now.

            any_backbone: take it in even if it was trained on other weights.

        Raises:
            OtherBackbone: if it was trained on other weights.
            AdapterError: if the name is taken, or the adapter does not fit; nothing is added.
        """
        if adapter is None:
            updates = {
                layer: _update(layer, layer.lora_A, layer.lora_B, layer.scaling)
                for layer in self.layers.values()
            }
        else:
            check_backbone(self.model, adapter, any_backbone)
            fitting = adapter.fit(self.layers)
            updates = {
                self.layers[at]: _update(self.layers[at], *found) for at, found in fitting.items()
            }
        self._take(name, updates)

    def combine(self, name: str, weights: Mapping[str, float]) -> None:
        """Add the weighted sum of adapters as one of its own: exactly, so their ranks add up.

        Raises:
            AdapterError: if the name is taken, or an adapter does not exist.
        """
        parts = [(self._get(one), weight) for one, weight in weights.items()]
        updates: dict[LoraLayer, _Update] = {}
        for layer in self.layers.values():
            held = [(found[layer], weight) for found, weight in parts if layer in found]
            if held:
                scaled = [(one.a.data, one.b.data * (w * one.scaling)) for one, w in held]
                updates[layer] = _update(layer, *layer.join(scaled), 1.0)
        self._take(name, updates)

    @torch.no_grad()
    def switch(self, name: str) -> None:
        """Copy an adapter, as it is now, into the layers: in place, so nothing is compiled anew.

        Raises:
            AdapterError: if there is none of this name, or its rank is higher than the layers';
                nothing is changed.
        """
        updates = self._get(name)
        for at, layer in self.layers.items():
            if layer in updates and len(updates[layer].a) > len(layer.lora_A):
                needed = math.ceil(layer.r * len(updates[layer].a) / len(layer.lora_A))
                raise AdapterError(
                    f"{name!r} has a higher rank than the layer {at}. Place LoRA with r={needed} "
                    f"instead of {layer.r}, or use `rows`, which take any rank."
                )
        for layer in self.layers.values():
            update = updates.get(layer)
            if update is None or len(update.a) < len(layer.lora_A):
                layer.lora_A.zero_()  # nothing of the last adapter may stay
                layer.lora_B.zero_()
            if update is not None:
                layer.put(update.a, update.b, update.scaling)
            elif layer.merged:
                layer.merge()

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """What an adapter consists of, by name, to be trained.

        Raises:
            AdapterError: if there is none of this name.
        """
        held = self._get(name)
        found: dict[str, nn.Parameter] = {}
        for at, layer in self.layers.items():
            if layer in held:
                found |= {f"{at}.lora_A": held[layer].a, f"{at}.lora_B": held[layer].b}
        return found

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Within this context, row i of each batch (its first dimension) goes through adapter
        names[i], in training as in inference. Gradient checkpointing computes forward again in
        backward: then this, too, belongs in the context.

        Raises:
            AdapterError: if there is none of this name.
        """
        rows = _Rows([self._get(name) for name in names])
        before = [(layer, layer.rows) for layer in self.layers.values()]
        for layer, _ in before:
            layer.rows = rows
        try:
            yield
        finally:
            for layer, outer in before:
                layer.rows = outer

    def _get(self, name: str) -> dict[LoraLayer, _Update]:
        if name not in self._updates:
            there = ", ".join(self._updates) or "none yet"
            raise AdapterError(f"There is no adapter {name!r}; there are: {there}.")
        return self._updates[name]

    def _take(self, name: str, updates: dict[LoraLayer, _Update]) -> None:
        if name in self._updates:
            raise AdapterError(f"There is an adapter {name!r} already.")
        self._updates[name] = updates


class _Rows:
    """Rows of a batch and their adapters; equal ones are computed together, never mixed: what is
    not a number in one adapter does not reach the rows of another."""

    def __init__(self, adapters: Sequence[dict[LoraLayer, _Update]]) -> None:
        self.count = len(adapters)
        groups: dict[int, list[int]] = {}
        for row, adapter in enumerate(adapters):
            groups.setdefault(id(adapter), []).append(row)
        self.adapters = [adapters[rows[0]] for rows in groups.values()]
        self.sizes = [len(rows) for rows in groups.values()]
        order = [row for rows in groups.values() for row in rows]
        self.order = None if order == sorted(order) else order

    def forward(self, layer: LoraLayer, input: Tensor) -> Tensor:
        """The layer's output, each row with its own adapter."""
        plain = layer._plain(input, layer.base_weight)
        if len(input) == 1 < self.count:  # the same for all rows, as the numbers of positions are
            input = input.expand(self.count, *input.shape[1:])
            plain = plain.expand(self.count, *plain.shape[1:])
        if len(input) != self.count:
            raise ValueError(f"a batch of {len(input)} rows, but adapters for {self.count}")
        order = None if self.order is None else torch.tensor(self.order, device=input.device)
        if order is not None:
            input, plain = input[order], plain[order]
        parts = []
        split = zip(input.split(self.sizes), plain.split(self.sizes), strict=True)
        for (some, output), adapter in zip(split, self.adapters, strict=True):
            update = adapter.get(layer)
            if update is not None:
                output = layer.add_update(output, some, update.a, update.b, update.scaling)
            parts.append(output)
        whole = torch.cat(parts)
        return whole if order is None else whole[torch.argsort(order)]


def _update(layer: LoraLayer, a: Tensor, b: Tensor, scaling: float) -> _Update:
    """A copy, where the layer's own factors are and of their type."""
    a, b = (factor.detach().to(layer.lora_A, copy=True) for factor in (a, b))
    return _Update(nn.Parameter(a), nn.Parameter(b), scaling)
