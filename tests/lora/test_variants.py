"""Rank-stabilised scaling, DoRA, PiSSA and LoRA+: how they start, and that they start as PEFT's."""

from __future__ import annotations

import copy
from typing import Any

import naive
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lora_exp import lora


def theirs(model: nn.Module, **arguments: Any) -> Any:
    """The model with PEFT's LoRA in its first layer."""
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0"], **arguments)
    return peft.get_peft_model(copy.deepcopy(model), config)


def test_rank_stabilised_scaling() -> None:
    layer = lora.Linear.wrap(nn.Linear(6, 4), r=4, lora_alpha=6, rslora=True)
    assert layer.scaling == 6 / 2
    peft_layer = theirs(nn.Sequential(nn.Linear(6, 4)), use_rslora=True).base_model.model[0]
    assert lora.Linear.wrap(nn.Linear(6, 4), r=2, lora_alpha=6, rslora=True).scaling == (
        pytest.approx(peft_layer.scaling["default"])
    )


# -- DoRA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [nn.Linear(6, 4), Conv1D(4, 6)])
def test_dora_starts_as_the_plain_layer_with_its_norms(plain: nn.Module) -> None:
    layer = lora.DoraLinear.wrap(plain, r=2, lora_alpha=6)
    start = theirs(
        nn.Sequential(plain), use_dora=True, fan_in_fan_out=isinstance(plain, Conv1D)
    ).base_model.model[0]
    torch.testing.assert_close(
        layer.lora_magnitude_vector, start.lora_magnitude_vector["default"].weight
    )
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.eval()(x), plain(x))


def test_dora_merges_the_turned_and_stretched_weight() -> None:
    layer = naive.fill(lora.DoraLinear(6, 4, r=2, lora_alpha=6)).double()
    nn.init.uniform_(layer.lora_magnitude_vector)
    turned = layer.weight + 3 * layer.lora_B @ layer.lora_A
    expected = layer.lora_magnitude_vector[:, None] * F.normalize(turned, dim=1)
    torch.testing.assert_close(layer.adapted_weight(), expected)
    torch.testing.assert_close(layer.eval().weight, expected)


@pytest.mark.parametrize("merged", [False, True])
def test_dora_takes_the_norms_of_a_plain_weight_that_is_loaded(merged: bool) -> None:
    plain = nn.Linear(6, 4)
    layer = lora.DoraLinear(6, 4, r=2).train(not merged)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x))
    trained = naive.fill(lora.DoraLinear(6, 4, r=2))  # but what is trained is not touched
    magnitude = trained.lora_magnitude_vector.clone()
    trained.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(trained.lora_magnitude_vector, magnitude)


def test_dora_of_a_row_of_zeros_stays_one() -> None:
    layer = lora.DoraLinear(6, 4, r=2, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0
    layer.reset_lora_parameters()
    found = layer(torch.ones(3, 6))
    found.square().sum().backward()
    assert not found[:, 1].any()
    assert layer.lora_B.grad is not None
    assert layer.lora_B.grad.isfinite().all()
    assert not layer.eval().weight[1].any()


def test_dora_in_bfloat16_keeps_its_factors_in_float32() -> None:
    plain = nn.Linear(64, 64).bfloat16()
    layer = naive.fill(lora.DoraLinear.wrap(plain, r=2, lora_dropout=0.1))
    assert {p.dtype for n, p in layer.named_parameters() if "lora_" in n} == {torch.float32}
    x = torch.randn(3, 64).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(
        layer.eval()(x), F.linear(x, layer.weight, layer.bias), atol=0.1, rtol=0.1
    )


# -- PiSSA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [nn.Linear(6, 4), Conv1D(4, 6)])
def test_pissa_starts_as_peft_does(plain: Any) -> None:
    model: Any = nn.Sequential(copy.deepcopy(plain))
    lora.place(model, ["0"], r=2, alpha=6)
    lora.initialise_pissa(model)
    start = theirs(
        nn.Sequential(plain), init_lora_weights="pissa", fan_in_fan_out=isinstance(plain, Conv1D)
    ).base_model.model[0]
    a, b = start.lora_A["default"].weight, start.lora_B["default"].weight
    torch.testing.assert_close(model[0].lora_B @ model[0].lora_A, b @ a)
    torch.testing.assert_close(model[0].weight, start.base_layer.weight)
    x = torch.randn(3, 6)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("size", [(6, 4), (1, 5), (5, 1)])  # also ranks above that of the weight
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pissa_leaves_the_output_as_it_was(size: tuple[int, int], dtype: torch.dtype) -> None:
    model: Any = nn.Sequential(nn.Linear(*size)).to(dtype)
    x = torch.randn(3, size[0], dtype=dtype)
    before = model(x)
    lora.place(model, ["0"], r=3, alpha=6, merge_weights=True)
    model.eval()
    lora.initialise_pissa(model)
    assert model[0].merged
    close: dict[str, Any] = {"atol": 0.03, "rtol": 0.03} if dtype == torch.bfloat16 else {}
    with torch.no_grad():
        torch.testing.assert_close(model(x), before, **close)
    torch.testing.assert_close(model.train()(x), before, **close)


@pytest.mark.parametrize("merged", [False, True])
def test_pissa_refuses_a_tied_weight(merged: bool) -> None:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    model: Any = nn.Sequential(first, second)
    before = first.weight.clone()
    lora.place(model, ["0"], r=3, alpha=6, merge_weights=True)
    model.train(not merged)
    with pytest.raises(ValueError, match="the weight of 0, which is tied to another module"):
        lora.initialise_pissa(model)
    assert torch.equal(model.train()[0].weight, before)
    assert model[1].weight is model[0].weight


def test_pissa_where_it_cannot_start_changes_nothing() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Embedding(4, 4))
    before = copy.deepcopy(model.state_dict())
    lora.place(model, ["0", "1"], r=1, alpha=1)
    with pytest.raises(ValueError, match="whole linear weights; 1 is a Embedding"):
        lora.initialise_pissa(model)
    assert torch.equal(model[0].weight, before["0.weight"])
    fused: Any = nn.Sequential(lora.MergedLinear(4, 4, r=1, enable_lora=[True, False]))
    with pytest.raises(ValueError, match=r"0 is a MergedLinear\. Name linear layers"):
        lora.initialise_pissa(fused)
    once: Any = nn.Sequential(lora.Linear(4, 4, r=1))
    lora.initialise_pissa(once)
    with pytest.raises(ValueError, match="started with PiSSA already"):
        lora.initialise_pissa(once)


# -- LoRA+ -----------------------------------------------------------------------------------------


def test_lora_plus_gives_each_parameter_the_rate_that_peft_gives_it() -> None:
    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    ours: Any = copy.deepcopy(plain)
    lora.place(ours, ["0"], r=2, alpha=6)
    lora.mark_only_lora_as_trainable(ours, "lora_only", also=["3"])
    groups = lora.lora_plus(ours.named_parameters(), lr=0.1, ratio=16, weight_decay=0.5)

    model = theirs(plain, modules_to_save=["3"], bias="lora_only")
    optimiser = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.1, loraplus_lr_ratio=16, loraplus_weight_decay=0.5
    )
    renamed = {
        name.removeprefix("base_model.model.")
        .replace(".modules_to_save.default", "")
        .replace(".default.weight", "")
        .replace(".base_layer", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert rates(groups, dict(ours.named_parameters())) == rates(optimiser.param_groups, renamed)


def rates(groups: list[dict[str, Any]], parameters: dict[str, Any]) -> dict[str, Any]:
    """Learning rate and decay of each parameter."""
    names = {parameter: name for name, parameter in parameters.items()}
    return {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
