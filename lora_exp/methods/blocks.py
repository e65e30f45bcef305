"""Where the parts of a transformer are, for methods that train some of them or add to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lora_exp.errors import UserError

if TYPE_CHECKING:
    from lora_exp.models import Backbone


@dataclass(frozen=True)
class Blocks:
    """The layers of an architecture, all named inside its pre-trained part."""

    layers: str
    """The list of layers."""
    attention: str
    """In a layer: what computes attention."""
    outputs: tuple[str, str]
    """In a layer: where attention and the MLP end, before their output is added to their input;
    with `post_norm` the module that adds and normalises as well."""
    above: tuple[str, ...]
    """What stands above the layers, where the model has it."""
    post_norm: bool = False
    """A LayerNorm follows each addition (BERT), instead of standing before attention and MLP."""
    causal: bool = True


_BERT = Blocks(
    layers="encoder.layer",
    attention="attention.self",
    outputs=("attention.output", "output"),
    above=("pooler",),
    post_norm=True,
    causal=False,
)
_LLAMA = Blocks("layers", "self_attn", ("self_attn.o_proj", "mlp.down_proj"), ("norm",))
BLOCKS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "deberta-v2"), _BERT),
    "gpt2": Blocks("h", "attn", ("attn.c_proj", "mlp.c_proj"), ("ln_f",)),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), _LLAMA),
}
"""By transformers' `model_type`."""


def blocks_of(backbone: Backbone, method: str) -> Blocks:
    """The blocks of a backbone.

    Raises:
        UserError: if its architecture is not known.
    """
    kind = backbone.model.config.model_type
    if kind not in BLOCKS:
        raise UserError(
            f"method={method}: the layers of {kind} models are not known, only those of "
            f"{', '.join(BLOCKS)}. Choose method=lora, full or bitfit."
        )
    return BLOCKS[kind]


def layers_of(backbone: Backbone, method: str) -> list[Any]:
    """The layers of a backbone, from the bottom.

    Raises:
        UserError: if its architecture is not known.
    """
    path = blocks_of(backbone, method).layers
    base = backbone.model.get_submodule(backbone.model.base_model_prefix)
    return list(cast(nn.ModuleList, base.get_submodule(path)))
