"""How near a step is to its floor, and what it consists of.

The floor is what a step cannot do without, on the same batches: the frozen model forward, and
backward to the activations as far down as the first adapter; without adapters, dropout, optimiser
and gradients of weights. The ratio in its row is floor / step: a step with 1 would be at its floor.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import steps
from measure import Row, against, shown
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lora_exp.train.forward import Piece, forward
from lora_exp.train.pack import Pack
from lora_exp.train.workplace import loaded, set_precision

PARTS = {
    "matrix products": ("mm", "addmm", "bmm", "linear_pointwise"),
    "GELU": ("gelu",),
    "softmax": ("softmax", "amax", "sub", "exp", "sum", "div", "addcmul", "masked_fill"),
    "norms": ("layer_norm",),
    "copies": ("copy", "index_select", "cat"),
}
"""Of a step: the operations that each of its parts consists of, as torch's profiler names them."""


def rows(what: str, recipe: steps.Recipe, repeats: int) -> list[Row]:
    """A step against its floor, and its parts.

    Args:
        what: is trained.
        recipe: both sides'.
        repeats: pairs of steps, and steps that are profiled.
    """
    pack = steps.ours(recipe)
    name = f"step, {what}"
    return [
        against(f"{name}; its floor", pack.step, {"": floor(recipe, pack)}, repeats),
        parts(f"{name}, profiled; its parts", pack, repeats),
    ]


def floor(recipe: steps.Recipe, pack: Pack) -> steps.Step:
    """The least that the steps of `pack` have to do."""
    (run,) = pack.members
    data = run.data.train
    backbone = loaded(run.config.model, 2, run.backbone.tokenizer)
    model: Any = backbone.model.requires_grad_(False).eval()
    set_precision(backbone, recipe.precision)
    lowest = model.base_model.encoder.layer[0].attention.self
    for projection in (lowest.query, lowest.value):  # what the first adapters are added to
        projection.register_forward_hook(lambda *given: given[-1].requires_grad_())
    chosen = steps.batches(len(data), recipe.batch_size, run.config.seed)

    def step() -> None:
        batch = data.batch(next(chosen))
        with forward([Piece(backbone, batch)], recipe.precision) as (logits,):
            F.cross_entropy(logits.float(), batch.labels).backward()

    return step


def parts(what: str, pack: Pack, repeats: int) -> Row:
    """The shares that operations have in a step, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        for _ in range(repeats):
            pack.step()
        whole = time.perf_counter() - began
    spent = defaultdict[str, float](float)
    for event in profiled.key_averages():
        spent[_part(event.key)] += event.self_cpu_time_total / 1e6
    spent["Python and numpy"] = whole - sum(spent.values())
    largest = sorted(spent.items(), key=lambda part: -part[1])
    shares = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in largest)
    return Row(what, shown(whole / repeats), shares, "")


def _part(operation: str) -> str:
    name = operation.rpartition("::")[2].removesuffix("_data").removesuffix("_backward").strip("_")
    name = name.removeprefix("native_")
    return next((part for part, names in PARTS.items() if name in names), "other operations")
