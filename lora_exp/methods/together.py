"""Runs in one pass through the model: what is a run's own, around the frozen weights of all.

The model of the first run computes for every run. Where a module is each run's own, it gives the
rows of each run what that run's own module gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_exp.lora.packed import Mask

Modules = Mapping[str, Any]
Spans = Mapping[int, Sequence[slice]]
"""Where the rows of each run lie, by how many rows a tensor has: its last dimension but one."""


@dataclass(frozen=True)
class Own:
    """What of a model is a run's own."""

    modules: Modules
    """By name; those of all runs in a pass have the same names."""
    packed: Callable[[Sequence[Modules], Spans, Mask], AbstractContextManager[None]]
    """Within this context, the modules of the first run's model work for all runs. The mask is
    that of dropout within them (as `lora.packed` has it)."""


def own_modules(modules: Modules, forward: Callable[..., Any]) -> Own:
    """Modules that are replaced by a function in a pass of several runs.

    Args:
        modules: of a run.
        forward: (the modules of one name, spans, their input) -> their output.
    """
    return Own(modules, partial(_packed, forward))


@contextmanager
def _packed(
    forward: Callable[..., Any], runs: Sequence[Modules], spans: Spans, mask: Mask
) -> Iterator[None]:
    replaced = runs[0] if len(runs) > 1 else {}
    for name, module in replaced.items():
        module.forward = partial(forward, [modules[name] for modules in runs], spans)
    try:
        yield
    finally:
        for module in replaced.values():
            del module.forward
