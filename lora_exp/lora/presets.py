"""What is known of architectures: good places for LoRA, and the slices of fused projections."""

from __future__ import annotations


class PlacementError(ValueError):
    """A placement that does not fit the model; the message says what would."""


_BERT = {
    "qv": ["attention.self.{query,value}"],
    "attention": ["attention.self.{query,key,value}", "attention.output.dense"],
    "mlp": ["layer.*.{intermediate,output}.dense"],
    "embedding": ["embeddings.word_embeddings"],
}
_DECODER = {
    "qv": ["self_attn.{q,v}_proj"],
    "attention": ["self_attn.{q,k,v,o}_proj"],
    "mlp": ["mlp.{gate,up,down}_proj"],
}
_LLAMA = _DECODER | {"embedding": ["embed_tokens"]}
PRESETS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "deberta-v2": _BERT
    | {
        "qv": ["attention.self.{query,value}_proj"],
        "attention": ["attention.self.{query,key,value}_proj", "attention.output.dense"],
    },
    "gpt2": {
        "qv": ["attn.c_attn:query,value"],
        "attention": ["attn.c_attn:query,key,value", "attn.c_proj"],
        "mlp": ["mlp.{c_fc,c_proj}"],
        "embedding": ["wte"],
    },
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _DECODER),  # their embedding is scaled
    "phi3": {
        "qv": ["self_attn.qkv_proj:query,value"],
        "attention": ["self_attn.qkv_proj:query,key,value", "self_attn.o_proj"],
        "mlp": ["mlp.gate_up_proj:gate,up", "mlp.down_proj"],
        "embedding": ["embed_tokens"],
    },
    "t5": {
        "qv": ["{SelfAttention,EncDecAttention}.{q,v}"],
        "attention": ["{SelfAttention,EncDecAttention}.{q,k,v,o}"],
        "mlp": ["DenseReluDense.{wi,wi_0,wi_1,wo}"],
        "embedding": ["{encoder,decoder}.embed_tokens"],  # `shared` only gives them its weight
    },
    "vit": {  # the names of transformers 5.23, and those before
        "qv": ["attention.{{q,v}_proj,attention.{query,value}}"],
        "attention": ["attention.{{q,k,v,o}_proj,attention.{query,key,value},output.dense}"],
        "mlp": ["{mlp.{fc1,fc2},layer.*.{intermediate,output}.dense}"],
    },
    "resnet": {"convolution": ["convolution"]},
}
"""Patterns by architecture (transformers' `model_type`) and by name of the preset."""

QKV = ("query", "key", "value")
FUSED = {
    "c_attn": (("gpt2", "openai-gpt"), QKV),
    "qkv_proj": (("phi3",), QKV),
    "gate_up_proj": (("phi3",), ("gate", "up")),
}
"""By the name of a fused projection: the architectures that hold these slices, one after the other.
In others (CodeGen) a layer of the same name mixes them."""


def preset(architecture: str, name: str) -> list[str]:
    """The patterns of a preset.

    Args:
        architecture: `config.model_type` of a transformers model.
        name: `qv`, `attention`, `mlp`, or `all_linear` for the last two together; `embedding` (of
            words); `convolution`.

    Raises:
        PlacementError: for an architecture that is not known, or a preset that it does not have.
    """
    if architecture not in PRESETS:
        raise PlacementError(
            f"There are no presets for {architecture} models, only for {', '.join(PRESETS)}. "
            "Give the modules by name (targets)."
        )
    presets = PRESETS[architecture]
    if "mlp" in presets:
        presets = presets | {"all_linear": presets["attention"] + presets["mlp"]}
    if name not in presets:
        known = ", ".join(presets)
        raise PlacementError(f"There is no preset {name!r} for {architecture} models, but {known}.")
    return presets[name]
