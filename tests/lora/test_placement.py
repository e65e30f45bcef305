"""Which modules a placement reaches, and what is said of one that reaches none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    PreTrainedConfig,
    RobertaConfig,
)

from lora_exp import lora

SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
}
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL),
    "deberta-v2": DebertaV2Config(**SMALL),
    "gpt2": GPT2Config(
        n_embd=8, n_layer=2, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=0
    ),
}
PER_LAYER = {  # layers that each preset reaches in one transformer layer
    "bert": {"qv": 2, "attention": 4, "mlp": 2, "all_linear": 6},
    "roberta": {"qv": 2, "attention": 4, "mlp": 2, "all_linear": 6},
    "deberta-v2": {"qv": 2, "attention": 4, "mlp": 2, "all_linear": 6},
    "gpt2": {"qv": 1, "attention": 2, "mlp": 2, "all_linear": 4},
}


def model(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(config)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("name", ["qv", "attention", "mlp", "all_linear"])
def test_presets_reach_every_layer(architecture: str, name: str) -> None:
    net = model(CONFIGS[architecture])
    placed = lora.place(net, lora.preset(architecture, name), r=2, alpha=4)
    assert len(placed) == 2 * PER_LAYER[architecture][name]
    assert sorted(placed) == sorted(layer for layer, _ in lora.lora_layers(net))


def test_the_mlp_preset_leaves_the_attention_alone() -> None:
    placed = lora.place(model(CONFIGS["bert"]), lora.preset("bert", "mlp"), r=2, alpha=4)
    assert not any("attention" in name for name in placed)


def test_query_and_value_of_gpt2_are_slices() -> None:
    net = model(CONFIGS["gpt2"])
    (name, *_) = lora.place(net, lora.preset("gpt2", "qv"), r=2, alpha=4)
    layer = net.get_submodule(name)
    assert isinstance(layer, lora.MergedLinear)
    assert layer.enable_lora == (True, False, True)
    assert layer.fan_in_fan_out


def test_patterns() -> None:
    def reached(*targets: str) -> set[str]:
        return set(lora.place(model(CONFIGS["bert"]), targets, r=2, alpha=4))

    queries = {f"encoder.layer.{i}.attention.self.query" for i in (0, 1)}
    assert reached("query") == queries
    assert reached("layer.0.**.query") == {"encoder.layer.0.attention.self.query"}
    assert reached("layer.[1-3].attention.self.query") == {"encoder.layer.1.attention.self.query"}
    assert reached("layer.*.output.dense") == {f"encoder.layer.{i}.output.dense" for i in (0, 1)}
    assert reached("query", "pooler.dense") == queries | {"pooler.dense"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["qury"], r"'qury' matches no layer of this model. Did you mean query\?"),
        (["encoder.layer.7.attention.self.query"], r"layer.\*.attention.self.query  \(2 times\)"),
        (["query", "attention.self.query"], "which another pattern names too"),
        (["query:query"], "this layer does not hold query, key, value side by side"),
        (["layer.[5-0].query"], "is not a pattern: bad character range"),
        (["query:quary"], "no slice 'quary'; there are query, key, value"),
    ],
)
def test_a_placement_that_does_not_fit_changes_nothing(targets: list[str], message: str) -> None:
    net = model(CONFIGS["bert"])
    with pytest.raises(lora.PlacementError, match=message):
        lora.place(net, targets, r=2, alpha=4)
    assert not list(lora.lora_layers(net))


def test_unknown_presets() -> None:
    with pytest.raises(lora.PlacementError, match="no preset 'qk', but qv, attention"):
        lora.preset("bert", "qk")
    with pytest.raises(lora.PlacementError, match="no presets for mamba models"):
        lora.preset("mamba", "qv")


def test_initial_values_depend_on_seed_and_name_only() -> None:
    def values(targets: list[str], seed: int) -> dict[str, torch.Tensor]:
        net = model(CONFIGS["bert"])
        lora.place(net, targets, r=2, alpha=4)
        torch.manual_seed(len(targets))  # what else was drawn before must not matter
        lora.initialise(net, seed)
        return {name: layer.lora_A.detach() for name, layer in lora.lora_layers(net)}

    few, many, other = values(["query"], 1), values(["value", "query"], 1), values(["query"], 2)
    for name, value in few.items():
        assert torch.equal(value, many[name])
        assert not torch.equal(value, other[name])
    assert not torch.equal(*few.values())


def test_trainable_and_state() -> None:
    net = model(CONFIGS["bert"])
    lora.place(net, ["query"], r=2, alpha=4)
    for bias, expected in {"none": 4, "lora_only": 6}.items():
        lora.mark_only_lora_as_trainable(net, bias)  # type: ignore[arg-type]
        trained = {name for name, p in net.named_parameters() if p.requires_grad}
        assert len(trained) == expected
        assert set(lora.lora_state_dict(net, bias)) == trained  # type: ignore[arg-type]
    lora.mark_only_lora_as_trainable(net, "all")
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in net.named_parameters() if n.endswith("bias") or "lora" in n}
    with pytest.raises(ValueError, match="bias='some'"):
        lora.mark_only_lora_as_trainable(net, "some")  # type: ignore[arg-type]
