"""What has to be known of an architecture to feed it flat batches; others are padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lora_exp.train.dropout import give_places
from lora_exp.train.flat import ATTENTION, attention
from lora_exp.train.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """An architecture."""

    head: Callable[[Any, Tensor], Tensor]
    """(model, rows [sequences, hidden]) -> logits [sequences, classes]."""
    reads: str
    """The token of each sequence that the head reads: `first` or `last`."""
    last_layer: str | None = None
    """Where in the model the last layer is, and what it then computes: the rows that the head
    reads, from the keys and values of all."""
    shortened: Callable[..., Tensor] | None = None

    def read(self, where: Layout) -> Tensor:
        """[sequences]: the tokens that the head reads."""
        return where.first if self.reads == "first" else where.last


def _bert_head(model: Any, rows: Tensor) -> Tensor:
    pooler = model.bert.pooler
    return model.classifier(model.dropout(pooler.activation(pooler.dense(rows))))


def _roberta_head(model: Any, rows: Tensor) -> Tensor:
    return model.classifier(rows[:, None])  # the library's reads the token at position 0


def _score_head(model: Any, rows: Tensor) -> Tensor:
    return model.score(rows)


def _seen(
    inner: Any, query: Tensor, key: Tensor, value: Tensor, where: Layout, dropout: nn.Dropout
) -> Tensor:
    """[1, sequences, hidden]: what one token of each sequence sees."""
    probability = dropout.p if dropout.training else 0.0
    options = {"flat_layout": where, "scaling": inner.scaling, "dropout": probability}
    return attention(inner, query, key, value, None, **options)[0].flatten(2)


def _bert_layer(layer: Any, hidden: Tensor, *unused: Any, flat_layout: Layout, **more: Any) -> Any:
    """BertLayer and RobertaLayer for the first token of each sequence: [1, sequences, hidden]."""
    inner, rows = layer.attention.self, hidden.index_select(1, flat_layout.first)
    query, key, value = (
        projection(some).unflatten(-1, (-1, inner.attention_head_size)).transpose(1, 2)
        for projection, some in ((inner.query, rows), (inner.key, hidden), (inner.value, hidden))
    )
    seen = _seen(inner, query, key, value, flat_layout, inner.dropout)
    attended = layer.attention.output(seen, rows)
    return layer.output(layer.intermediate(attended), attended)


def _gpt2_block(block: Any, hidden: Tensor, *unused: Any, flat_layout: Layout, **more: Any) -> Any:
    """GPT2Block for the last token of each sequence: [1, tokens, hidden], zero elsewhere."""
    inner, last = block.attn, flat_layout.last
    query, key, value = (
        part.unflatten(-1, (-1, inner.head_dim)).transpose(1, 2)
        for part in inner.c_attn(block.ln_1(hidden)).split(inner.split_size, dim=2)
    )
    seen = _seen(inner, query.index_select(2, last), key, value, flat_layout, inner.attn_dropout)
    rows = hidden.index_select(1, last) + inner.resid_dropout(inner.c_proj(seen))
    rows = rows + block.mlp(block.ln_2(rows))
    return rows.new_zeros(hidden.shape).index_copy(1, last, rows)


_ROBERTA = Family(_roberta_head, "first", "encoder.layer", _bert_layer)
_DECODER = Family(_score_head, "last")
FAMILIES = {
    "bert": Family(_bert_head, "first", "encoder.layer", _bert_layer),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "gpt2": Family(_score_head, "last", "h", _gpt2_block),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "phi3": _DECODER,
}
"""By transformers' `model_type`."""


def family_of(config: PreTrainedConfig) -> Family | None:
    """The family of an architecture; None if it has to be padded."""
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return None  # a layout knows of whole sequences only
    return FAMILIES.get(config.model_type)


def _nothing(hidden: Tensor) -> None:
    pass


def make_flat(model: PreTrainedModel) -> None:
    """Have a model take flat batches, if its architecture can; a classifier's last layer then
    computes only what its head reads."""
    family = family_of(model.config)
    if family is None:
        return
    model.set_attn_implementation(ATTENTION)
    give_places(model)
    pooler: Any = getattr(model.base_model, "pooler", None)
    if pooler is not None:
        pooler.forward = _nothing  # it is computed with the head, of the rows that this reads
    writes = model.get_output_embeddings() is not None
    if family.last_layer is not None and family.shortened is not None and not writes:
        layers: Any = model.base_model.get_submodule(family.last_layer)
        layers[-1].forward = MethodType(family.shortened, layers[-1])
