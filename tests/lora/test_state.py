"""What is trained, what is saved, and the values it starts from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from lora_exp import lora


class Model(nn.Module):
    """An embedding tied to the head, a layer with LoRA, a norm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([lora.Linear(4, 4, r=2), nn.Linear(4, 4), lora.Linear(4, 4)])
        self.shared = self.layers[0]
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.words.weight


LORA = {"layers.0.lora_A", "layers.0.lora_B"}


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("none", LORA),
        ("lora_only", LORA | {"layers.0.bias"}),
        ("all", LORA | {f"{n}.bias" for n in ("layers.0", "layers.1", "layers.2", "norm", "head")}),
    ],
)
def test_bias(bias: Any, expected: set[str], training: bool) -> None:
    model = Model().train(training)
    lora.mark_only_lora_as_trainable(model, bias)
    shared = {name for name in trained(model) if name.startswith("shared.")}
    assert trained(model) - shared == expected
    assert set(lora.lora_state_dict(model, bias)) == expected


def test_modules_that_are_trained_in_full() -> None:
    model = Model()
    lora.mark_only_lora_as_trainable(model, also=["head", "norm"])
    expected = LORA | {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert trained(model) >= expected  # the head, though its weight is called `words.weight` first
    running = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(lora.lora_state_dict(model, also=["head", "norm"])) == expected | running
    lora.mark_only_lora_as_trainable(model, also=["shared"])  # any of its names
    assert model.layers[0].weight.requires_grad
    lora.mark_only_lora_as_trainable(model)
    assert trained(model) - {"shared.lora_A", "shared.lora_B"} == LORA


def test_what_does_not_exist_is_refused() -> None:
    model = Model()
    with pytest.raises(ValueError, match="also='haed': the model has no such module"):
        lora.mark_only_lora_as_trainable(model, also=["haed"])
    with pytest.raises(ValueError, match="there are none, lora_only and all"):
        lora.lora_state_dict(model, bias="some")  # type: ignore[arg-type]


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    def values(names: list[str], seed: int, **arguments: Any) -> dict[str, Any]:
        model = nn.ModuleDict({name: lora.Linear(40, 4, r=8) for name in names})
        lora.initialise(model, seed, **arguments)
        return {name: layer.lora_A for name, layer in model.items()}

    first, second = values(["a", "b"], 0), values(["b", "c", "a"], 0)
    assert torch.equal(first["a"], second["a"])
    assert torch.equal(first["b"], second["b"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], values(["a"], 1)["a"])
    assert first["a"].abs().max() <= 40**-0.5
    assert values(["a"], 0, normal=0.02)["a"].std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("training", [True, False])
def test_initialising_takes_the_update_back(training: bool) -> None:
    model: Any = nn.Sequential(lora.Embedding(5, 4, r=2), lora.DoraLinear(4, 4, r=2))
    numbers = torch.arange(5)
    for _, layer in lora.lora_layers(model):
        for name, parameter in layer.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
    model.train(training)
    lora.initialise(model, 3)
    with torch.no_grad():
        plain = model[1]._plain(model[0].base_weight[numbers], model[1].base_weight)
        torch.testing.assert_close(model(numbers), plain)


def bert() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(**sizes, num_hidden_layers=2, vocab_size=20))


def test_initial_values_depend_on_seed_and_name_only() -> None:
    def values(targets: list[str], seed: int) -> dict[str, torch.Tensor]:
        model = bert()
        lora.place(model, targets, r=2, alpha=4)
        torch.manual_seed(len(targets))  # what else was drawn before must not matter
        lora.initialise(model, seed)
        return {name: layer.lora_A.detach() for name, layer in lora.lora_layers(model)}

    few, many, other = values(["query"], 1), values(["value", "query"], 1), values(["query"], 2)
    for name, value in few.items():
        assert torch.equal(value, many[name])
        assert not torch.equal(value, other[name])
    assert not torch.equal(*few.values())


def test_trainable_and_state() -> None:
    model = bert()
    lora.place(model, ["query"], r=2, alpha=4)
    for bias, expected in {"none": 4, "lora_only": 6}.items():
        lora.mark_only_lora_as_trainable(model, bias)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == expected
        assert set(lora.lora_state_dict(model, bias)) == trained
    lora.mark_only_lora_as_trainable(model, "all")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.endswith("bias") or "lora" in n}
    with pytest.raises(ValueError, match="bias='some'"):
        lora.mark_only_lora_as_trainable(model, "some")
