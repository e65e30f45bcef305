"""Which modules a placement reaches, and what is said of one that reaches none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel

from lora_exp import lora
from lora_exp.lora.linear import is_transposed
from lora_exp.lora.presets import PRESETS

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 20}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "xlm-roberta": SMALL,
    "camembert": SMALL,
    "deberta-v2": SMALL,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 20}
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "phi3": GROUPED,
    "t5": T5,
    "t5 gated": T5 | {"feed_forward_proj": "gated-gelu"},
    "vit": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 24, "image_size": 8, "patch_size": 4},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 2]},
}
BERT = {"qv": 4, "attention": 8, "mlp": 4, "all_linear": 12, "embedding": 1}
FUSED = {"qv": 2, "attention": 4, "mlp": 4, "all_linear": 8, "embedding": 1}
GEMMA = {"qv": 4, "attention": 8, "mlp": 6, "all_linear": 14}
LLAMA = GEMMA | {"embedding": 1}
EXPECTED = {  # layers that each preset reaches; T5 has two self-attentions and one across, twice
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "deberta-v2"), BERT),
    **dict.fromkeys(("gpt2", "phi3"), FUSED),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), GEMMA),
    "t5": {"qv": 12, "attention": 24, "mlp": 8, "all_linear": 32, "embedding": 2},
    "t5 gated": {"qv": 12, "attention": 24, "mlp": 12, "all_linear": 36, "embedding": 2},
    "vit": {"qv": 4, "attention": 8, "mlp": 4, "all_linear": 12},
    "resnet": {"convolution": 11},
}
CASES = [(name, which) for name, expected in EXPECTED.items() for which in expected]


def with_head(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A small model with a head, and an input for it."""
    torch.manual_seed(0)
    model_type = name.split()[0]
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[name])
    tokens = {"input_ids": torch.tensor([[3, 4, 5, 2]])}
    if model_type in ("vit", "resnet"):
        head, tokens = "ImageClassification", {"pixel_values": torch.randn(1, 3, 8, 8)}
    elif model_type == "t5":
        head, tokens = "Seq2SeqLM", tokens | {"decoder_input_ids": torch.tensor([[0, 6]])}
    else:
        head = "SequenceClassification"
    return getattr(transformers, f"AutoModelFor{head}").from_config(config).eval(), tokens


def bert() -> nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(transformers.BertConfig(**SMALL))


def test_every_architecture_is_tested() -> None:
    assert PRESETS.keys() == {name.split()[0] for name in EXPECTED}
    for name, expected in EXPECTED.items():
        presets = PRESETS[name.split()[0]].keys()
        assert expected.keys() == presets | ({"all_linear"} if "mlp" in presets else set())


@pytest.mark.parametrize(("name", "which"), CASES)
def test_presets(name: str, which: str) -> None:
    model, inputs = with_head(name)
    plain = model(**inputs).logits
    kinds = {n: type(m) for n, m in model.named_modules()}
    placed = lora.place(model, lora.preset(name.split()[0], which), r=2, alpha=4)

    assert len(placed) == EXPECTED[name][which]
    assert set(placed) == {layer for layer, _ in lora.lora_layers(model)}
    assert torch.equal(model(**inputs).logits, plain)
    # Nothing outside of the layers, but for embeddings: no head, no pooler.
    base = f"{model.base_model_prefix}." if name.split()[0] != "t5" else ""
    assert all(layer.startswith(base) for layer in placed)
    if which != "embedding":
        assert all(any(part.isdigit() for part in n.split(".")) or name == "resnet" for n in placed)
    else:
        assert all(issubclass(kinds[layer], nn.Embedding) for layer in placed)
    if which == "all_linear":  # all of them: what is left is not in a layer
        left = [n for n, m in model.named_modules() if type(m) is nn.Linear or is_transposed(m)]
        assert not any(part.isdigit() for n in left for part in n.split("."))
    if which == "convolution":
        assert not any(type(module) is nn.Conv2d for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_presets_reach_no_head_of_a_language_model(name: str) -> None:
    config = transformers.AutoConfig.for_model(name, **CONFIGS[name])
    kind = {"bert": "MaskedLM", "t5": "Seq2SeqLM"}.get(name, "CausalLM")
    for which in EXPECTED[name]:
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
        placed = lora.place(model, lora.preset(name, which), r=2, alpha=4)
        assert len(placed) == EXPECTED[name][which]


def module(parts: dict[str, Any]) -> nn.Module:
    """A tree of linear layers: `{"a": {"b": None}}` has one, a.b."""
    return nn.ModuleDict({n: module(p) if p else nn.Linear(4, 4) for n, p in parts.items()})


def test_the_old_names_of_vit() -> None:
    """Those of transformers before 5.23."""
    layer = {
        "attention": {
            "attention": {"query": None, "key": None, "value": None},
            "output": {"dense": None},
        },
        "intermediate": {"dense": None},
        "output": {"dense": None},
    }

    def reached(which: str) -> set[str]:
        model = module({"encoder": {"layer": {"0": layer, "1": layer}}, "pooler": {"dense": None}})
        placed = lora.place(model, lora.preset("vit", which), r=2, alpha=4)
        return {name.removeprefix("encoder.layer.") for name in placed}

    def names(*parts: str) -> set[str]:
        return {f"{i}.{part}" for i in (0, 1) for part in parts}

    inner = "attention.attention."
    assert reached("qv") == names(f"{inner}query", f"{inner}value")
    assert reached("attention") == reached("qv") | names(f"{inner}key", "attention.output.dense")
    assert reached("mlp") == names("intermediate.dense", "output.dense")


def test_unknown_presets() -> None:
    with pytest.raises(lora.PlacementError, match="no preset 'qk' for bert models, but qv, att"):
        lora.preset("bert", "qk")
    with pytest.raises(lora.PlacementError, match="no preset 'qv' for resnet models, but convolut"):
        lora.preset("resnet", "qv")
    with pytest.raises(lora.PlacementError, match="no presets for mamba models, only for bert, "):
        lora.preset("mamba", "qv")


# -- patterns ---------------------------------------------------------------------------------


def test_patterns() -> None:
    def reached(*targets: str, **options: Any) -> set[str]:
        return set(lora.place(bert(), targets, r=2, alpha=4, **options))

    def both(*parts: str) -> set[str]:
        return {f"encoder.layer.{i}.{part}" for i in (0, 1) for part in parts}

    queries, values = both("attention.self.query"), both("attention.self.value")
    assert reached("query") == queries
    assert reached("layer.0.**.query") == {"encoder.layer.0.attention.self.query"}
    assert reached("layer.[1-3].attention.self.query") == {"encoder.layer.1.attention.self.query"}
    assert reached("layer.*.output.dense") == both("output.dense")
    assert reached("query", "pooler.dense") == queries | {"pooler.dense"}
    assert reached("{query,q_proj}") == queries
    assert reached("self.{query,v{alue,_proj}}") == queries | values
    assert reached("{layer.0.**.query,pooler.dense}") == {
        "encoder.layer.0.attention.self.query",
        "pooler.dense",
    }
    assert reached("dense", leave=["pooler"]) == both(
        "attention.output.dense", "intermediate.dense", "output.dense"
    )
    assert reached("query", layers="1") == {"encoder.layer.1.attention.self.query"}
    assert reached("query", layers="0-1") == reached("query", layers="0, 1") == queries
    assert reached("{query,dense}", layers="0-0") == {
        f"encoder.layer.0.{part}"
        for part in (
            "attention.self.query",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    }


@pytest.mark.parametrize(
    ("targets", "message", "options"),
    [
        (["qury"], r"'qury' matches no layer of this model. Did you mean query\?", {}),
        (["layer.7.**.query"], r"layer.\*.attention.self.query  \(2 times\)", {}),
        (["query", "self.query"], "'self.query' names .*self.query, which 'query' names too", {}),
        (["query:query"], "0.attention.self.query is not known to have slices; c_attn of gpt2", {}),
        (["layer.[5-0].query"], "is not a pattern: bad character range", {}),
        (["{query,value"], "is not a pattern: missing \\)", {}),
        (["query,value"], "'query,value' matches no layer", {}),
        (["LayerNorm"], "'LayerNorm' names LayerNorm: only plain linear layers, embeddings", {}),
        (["attention.self"], "'attention.self' names BertSelfAttention: only plain linear", {}),
        (["classifier"], "'classifier' matches no layer of this model", {}),
        (["pooler.**"], "matches no layer of this model", {"leave": ["pooler"]}),
        ([], "No layer gets LoRA: every rank is 0, or there are no targets", {}),
        # layers
        (["query"], "layers=0-5: there is no layer 2; there are 0, 1", {"layers": "0-5"}),
        (["query"], "layers=1-0: must be like", {"layers": "1-0"}),
        (["query"], "layers=all: must be like", {"layers": "all"}),
        (["query"], "layers=: must be like", {"layers": ""}),
        (["pooler.dense"], "embeddings and convolutions in layers=0-1 get LoRA", {"layers": "0-1"}),
        (["layer.1.**.query"], "names Linear: .* in layers=0 get LoRA", {"layers": "0"}),
        # ranks and alphas
        (
            ["query"],
            r"rank_pattern: 'value' matches nothing that gets LoRA. There are:\n  .*query  \(2",
            {"rank_pattern": {"value": 4}},
        ),
        (
            ["query"],
            "rank_pattern: 'layer.1.*' matches nothing",
            {"rank_pattern": {"layer.1.**": 4}, "layers": "0"},
        ),
        (
            ["query", "value"],
            r"rank_pattern: 'query' and 'layer.0.\*\*' disagree on encoder.layer.0.attention",
            {"rank_pattern": {"query": 4, "layer.0.**": 8}},
        ),
        (["query"], "rank_pattern: 'query': -1 is below 0", {"rank_pattern": {"query": -1}}),
        (["query"], "No layer gets LoRA: every rank is 0", {"rank_pattern": {"query": 0}}),
        (["query"], "alpha_pattern: 'qury' matches nothing.*query", {"alpha_pattern": {"qury": 1}}),
        # DoRA
        (["word_embeddings"], "'word_embeddings': DoRA cannot be combined", {"dora": True}),
    ],
)
def test_a_placement_that_does_not_fit_changes_nothing(
    targets: list[str], message: str, options: dict[str, Any]
) -> None:
    model = bert()
    with pytest.raises(lora.PlacementError, match=message):
        lora.place(model, targets, r=2, alpha=4, **options)
    assert not list(lora.lora_layers(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_without_numbers() -> None:
    model = module({"a": None, "b2": {"c": None}})
    with pytest.raises(lora.PlacementError, match="there are none with numbers"):
        lora.place(model, ["a"], r=2, alpha=4, layers="0")


def test_every_kind_of_layer() -> None:
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Conv2d(4, 4, 1)
    )
    model.append(nn.Conv3d(4, 4, 1))
    options = {"r": 2, "alpha": 4, "dropout": 0.5, "rslora": True, "merge_weights": True}
    assert lora.place(model, ["*"], **options) == ["0", "1", "2", "3", "4"]
    kinds = [lora.Embedding, lora.Linear, lora.Conv1d, lora.Conv2d, lora.Conv3d]
    assert [type(layer) for layer in model] == kinds
    for layer in model:
        assert isinstance(layer, lora.LoraLayer)
        assert (layer.r, layer.scaling, layer.merge_weights) == (2, 4 / 2**0.5, True)
        assert layer.lora_dropout.p == (0.0 if isinstance(layer, lora.Embedding) else 0.5)


def test_a_layer_that_computes_something_else_is_refused() -> None:
    gemma, _ = with_head("gemma")  # its embedding scales what it looks up
    with pytest.raises(lora.PlacementError, match="names GemmaTextScaledWordEmbedding: only plain"):
        lora.place(gemma, ["embed_tokens"], r=2, alpha=4)
    attention = nn.MultiheadAttention(4, 2)  # reads the weight of out_proj without calling it
    with pytest.raises(lora.PlacementError, match="'out_proj' names NonDynamicallyQuantizableL"):
        lora.place(attention, ["out_proj"], r=2, alpha=4)


def test_a_lora_layer_is_refused() -> None:
    model = bert()
    lora.place(model, ["query"], r=2, alpha=4)
    with pytest.raises(lora.PlacementError, match=r"names .*query, which is a LoRA layer already"):
        lora.place(model, ["self.{query,value}"], r=2, alpha=4)
    assert len(lora.place(model, ["value"], r=2, alpha=4)) == 2


# -- slices of fused projections --------------------------------------------------------------


def test_query_and_value_of_gpt2_are_slices() -> None:
    model, _ = with_head("gpt2")
    (name, *_) = lora.place(model, lora.preset("gpt2", "qv"), r=2, alpha=4)
    layer = model.get_submodule(name)
    assert isinstance(layer, lora.MergedLinear)
    assert layer.enable_lora == (True, False, True)
    assert layer.fan_in_fan_out


@pytest.mark.parametrize(
    ("target", "changed"),
    [
        ("qkv_proj:query", slice(0, 16)),
        ("qkv_proj:key", slice(16, 24)),
        ("qkv_proj:value", slice(24, 32)),
        ("gate_up_proj:gate", slice(0, 24)),
        ("gate_up_proj:up", slice(24, 48)),
    ],
)
def test_slices_of_unequal_widths(target: str, changed: slice) -> None:
    """Phi-3 with grouped queries: four heads, two of key and value."""
    model, _ = with_head("phi3")
    name = lora.place(model, [target], r=2, alpha=4)[0]
    layer = model.get_submodule(name)
    assert isinstance(layer, lora.MergedLinear)
    nn.init.ones_(layer.lora_B)
    rows = (layer.adapted_weight() != layer.weight).any(dim=1).nonzero().flatten()
    assert rows.tolist() == list(range(layer.out_features))[changed]


def test_slices_have_ranks_of_their_own() -> None:
    model, _ = with_head("gpt2")
    placed = lora.place(
        model,
        ["c_attn:query,value", "c_fc"],
        r=4,
        alpha=8,
        rank_pattern={"c_attn:query": 2, "h.1.**.c_attn:value": 0, "c_fc": 0},
        alpha_pattern={"c_attn": 16},
    )
    assert placed == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    first, second = (model.get_submodule(name) for name in placed)
    assert isinstance(first, lora.MergedLinear)
    assert isinstance(second, lora.MergedLinear)
    assert (first.ranks, first.enable_lora) == ((2, 4), (True, False, True))
    assert (second.ranks, second.enable_lora) == ((2,), (True, False, False))
    assert first.lora_alpha == second.lora_alpha == 16
    assert isinstance(model.get_submodule("transformer.h.0.mlp.c_fc"), transformers.Conv1D)


@pytest.mark.parametrize(
    ("target", "message", "options"),
    [
        ("c_attn:query,quary", "no slice 'quary'; there are query, key, value", {}),
        ("c_attn:", "no slice ''; there are", {}),
        ("c_fc:query", "mlp.c_fc is not known to have slices", {}),
        ("wte:query", "wte is not known to have slices", {}),
        ("c_attn:query", "'c_attn:query': DoRA cannot be combined with slices", {"dora": True}),
        (
            "c_attn:query,value",
            "alpha_pattern: the slices of .*c_attn must have one alpha",
            {"alpha_pattern": {"c_attn:query": 2}},
        ),
        (
            "c_attn:query,value",
            "rank_pattern: 'c_attn:query,key' matches nothing",
            {"rank_pattern": {"c_attn:query,key": 2}},
        ),
        ("c_attn", "'c_attn:query' matches nothing", {"rank_pattern": {"c_attn:query": 2}}),
        (
            "c_attn:query",
            "'c_attn' and 'c_attn:query' disagree on transformer.h.0.attn.c_attn",
            {"rank_pattern": {"c_attn": 2, "c_attn:query": 4}},
        ),
    ],
)
def test_slices_that_do_not_fit(target: str, message: str, options: dict[str, Any]) -> None:
    model, _ = with_head("gpt2")
    with pytest.raises(lora.PlacementError, match=message):
        lora.place(model, [target], r=4, alpha=4, **options)


def test_slices_are_those_of_an_architecture() -> None:
    """CodeGen calls a layer qkv_proj too, but mixes the slices; cross-attention has no query."""
    sizes: dict[str, Any] = {"n_embd": 24, "n_layer": 1, "n_head": 4, "vocab_size": 9}
    codegen = AutoModel.from_config(transformers.CodeGenConfig(rotary_dim=2, **sizes))
    with pytest.raises(lora.PlacementError, match="qkv_proj is not known to have slices"):
        lora.place(codegen, ["qkv_proj:query"], r=2, alpha=4)
    gpt2 = AutoModel.from_config(transformers.GPT2Config(add_cross_attention=True, **sizes))
    with pytest.raises(lora.PlacementError, match=r"crossattention.c_attn is not known to have sl"):
        lora.place(gpt2, ["c_attn:query"], r=2, alpha=4)


def test_in_a_model_of_ones_own_the_name_of_a_fused_layer_is_enough() -> None:
    model = nn.ModuleDict({"c_attn": nn.Linear(4, 12), "qkv_proj": nn.Linear(4, 10)})
    lora.place(model, ["c_attn:key"], r=2, alpha=4)
    layer = model["c_attn"]
    assert isinstance(layer, lora.MergedLinear)
    assert (layer.slice_widths, layer.enable_lora) == ((4, 4, 4), (False, True, False))
    with pytest.raises(lora.PlacementError, match="qkv_proj is not known to have slices"):
        lora.place(model, ["qkv_proj:query"], r=2, alpha=4)


# -- ranks, alphas, DoRA ----------------------------------------------------------------------


def test_ranks_and_alphas_by_pattern() -> None:
    model = bert()
    placed = lora.place(
        model,
        ["query", "value"],
        r=2,
        alpha=4,
        rank_pattern={"query": 3, "layer.0.**.value": 0, "layer.0.**.{query,value}": 3}
        | {"layer.0.**.value": 3, "layer.0.**.query": 3},
        alpha_pattern={"layer.1.**": 6.0},
    )
    layers = {".".join(n.split(".")[2::3]): layer for n, layer in lora.lora_layers(model)}
    found = {name: (layer.r, layer.lora_alpha) for name, layer in layers.items()}
    assert len(placed) == 4
    assert found == {"0.query": (3, 4), "0.value": (3, 4), "1.query": (3, 6.0), "1.value": (2, 6.0)}


def test_rank_zero_leaves_a_layer_plain() -> None:
    model = bert()
    placed = lora.place(
        model, ["query", "value"], r=2, alpha=4, rank_pattern={"layer.0.**": 0, "layer.1.**": 4}
    )
    assert placed == [f"encoder.layer.1.attention.self.{part}" for part in ("query", "value")]
    assert type(model.get_submodule("encoder.layer.0.attention.self.query")) is nn.Linear


def test_dora() -> None:
    model, _ = with_head("gpt2")
    placed = lora.place(model, ["c_attn", "c_fc"], r=2, alpha=4, dora=True)
    assert all(isinstance(model.get_submodule(name), lora.DoraLinear) for name in placed)
    model, _ = with_head("resnet")
    with pytest.raises(lora.PlacementError, match="'convolution': DoRA cannot be combined with"):
        lora.place(model, ["convolution"], r=2, alpha=4, dora=True)


# -- modules with several names ---------------------------------------------------------------


def test_a_module_with_several_names_is_replaced_under_all_of_them() -> None:
    model, inputs = with_head("t5")
    assert isinstance(model, transformers.T5ForConditionalGeneration)
    # As in transformers before 5: there the two stacks were given the model's own embedding.
    model.encoder.embed_tokens = model.decoder.embed_tokens = model.shared
    assert lora.place(model, ["decoder.embed_tokens"], r=2, alpha=4) == ["shared"]
    assert isinstance(model.shared, lora.Embedding)
    assert model.shared is model.encoder.embed_tokens is model.decoder.embed_tokens
    assert [name for name, _ in lora.lora_layers(model)] == ["shared"]
    before = model(**inputs).logits
    nn.init.ones_(model.shared.lora_A)
    assert not torch.equal(model(**inputs).logits, before)


def test_two_names_of_one_module_are_one_layer() -> None:
    def tied() -> nn.Module:
        inner = nn.Linear(4, 4)
        return nn.ModuleDict({"a": inner, "b": inner, "c": nn.ModuleDict({"d": inner})})

    assert lora.place(tied(), ["{a,b,d}"], r=2, alpha=4) == ["a"]
    with pytest.raises(lora.PlacementError, match="'b' names a, which 'a' names too"):
        lora.place(tied(), ["a", "b"], r=2, alpha=4)
    with pytest.raises(lora.PlacementError, match="'a' matches no layer"):
        lora.place(tied(), ["a"], r=2, alpha=4, leave=["c.d"])
