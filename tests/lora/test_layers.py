"""Layers against a dense computation of W + (alpha / r) B A, and against loralib."""

from __future__ import annotations

import loralib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lora_exp import lora


def filled(layer: lora.LoraLayer) -> lora.LoraLayer:
    """With a B that is not zero, or there would be nothing to see."""
    nn.init.normal_(layer.lora_B)
    return layer


def dense(layer: lora.LoraLayer) -> torch.Tensor:
    """The adapted weight [out, in], by the paper's formula, slice by slice."""
    weight = (layer.weight.T if layer.fan_in_fan_out else layer.weight).detach().clone()
    if isinstance(layer, lora.MergedLinear):
        width = layer.out_features // len(layer.enable_lora)
        for block, place in enumerate(i for i, on in enumerate(layer.enable_lora) if on):
            a = layer.lora_A[block * layer.r : (block + 1) * layer.r]
            b = layer.lora_B[block * width : (block + 1) * width]
            weight[place * width : (place + 1) * width] += layer.lora_alpha / layer.r * (b @ a)
        return weight
    return weight + layer.lora_alpha / layer.r * (layer.lora_B @ layer.lora_A)


@settings(max_examples=40, deadline=None)
@given(
    width=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    r=st.integers(1, 5),
    alpha=st.floats(0.5, 32),
    transposed=st.booleans(),
    bias=st.booleans(),
)
def test_linear_is_the_formula(
    width: tuple[int, int], r: int, alpha: float, transposed: bool, bias: bool
) -> None:
    layer = filled(lora.Linear(*width, r=r, lora_alpha=alpha, fan_in_fan_out=transposed, bias=bias))
    x = torch.randn(2, 3, width[0])
    torch.testing.assert_close(layer(x), F.linear(x, dense(layer), layer.bias))


@settings(max_examples=40, deadline=None)
@given(
    features=st.integers(1, 9),
    slice_width=st.integers(1, 5),
    r=st.integers(1, 5),
    enabled=st.lists(st.booleans(), min_size=1, max_size=4).filter(any),
    transposed=st.booleans(),
)
def test_merged_linear_is_the_formula(
    features: int, slice_width: int, r: int, enabled: list[bool], transposed: bool
) -> None:
    out = slice_width * len(enabled)
    layer = filled(
        lora.MergedLinear(
            features, out, r=r, lora_alpha=3, enable_lora=enabled, fan_in_fan_out=transposed
        )
    )
    x = torch.randn(2, 3, features)
    torch.testing.assert_close(layer(x), F.linear(x, dense(layer), layer.bias))


@pytest.mark.parametrize("transposed", [False, True])
def test_linear_equals_loralib_in_output_and_gradient(transposed: bool) -> None:
    ours = filled(lora.Linear(6, 4, r=2, lora_alpha=8, fan_in_fan_out=transposed))
    theirs = loralib.Linear(6, 4, r=2, lora_alpha=8, fan_in_fan_out=transposed)
    theirs.load_state_dict(ours.state_dict())
    compare(ours, theirs)


def test_merged_linear_equals_loralib_in_output_and_gradient() -> None:
    enabled = [True, False, True]
    ours = filled(lora.MergedLinear(6, 12, r=2, lora_alpha=8, enable_lora=enabled))
    theirs = loralib.MergedLinear(6, 12, r=2, lora_alpha=8, enable_lora=enabled)
    theirs.load_state_dict(ours.state_dict())
    compare(ours, theirs)


def compare(ours: nn.Module, theirs: nn.Module) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)  # so that no rounding is left to allow for
    for layer in (ours.double(), theirs.double()):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    for name in ("lora_A", "lora_B"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(theirs, name).grad)
    assert ours.weight.grad is None


def test_the_update_starts_at_zero() -> None:
    layer = lora.Linear(6, 4, r=2)
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_rank_zero_and_no_enabled_slice_are_the_plain_layer() -> None:
    for layer in (lora.Linear(6, 4), lora.MergedLinear(6, 4, r=2, enable_lora=[False, False])):
        assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
        x = torch.randn(3, 6)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_dropout_acts_on_the_update_only_and_in_training_only() -> None:
    layer = filled(lora.Linear(6, 4, r=2, lora_dropout=0.99))
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer.eval()(x), F.linear(x, dense(layer), layer.bias))
    torch.manual_seed(0)
    dropped = layer.train()(x)
    assert not torch.allclose(dropped, F.linear(x, dense(layer), layer.bias))


@pytest.mark.parametrize("module", [nn.Linear(6, 12), nn.Linear(6, 12, bias=False), Conv1D(12, 6)])
def test_wrapping_shares_the_weight_and_keeps_the_output(module: nn.Module) -> None:
    x = torch.randn(3, 6)
    for layer in (
        lora.Linear.wrap(module, r=2, lora_alpha=4),
        lora.MergedLinear.wrap(module, r=2, lora_alpha=4, enable_lora=[True, False, True]),
    ):
        assert layer.weight is module.weight
        torch.testing.assert_close(layer(x), module(x))
        assert layer.lora_A.requires_grad
        assert not layer.weight.requires_grad


def test_slices_must_divide_the_output() -> None:
    with pytest.raises(ValueError, match="10 outputs do not divide into 3"):
        lora.MergedLinear(6, 10, r=2, enable_lora=[True, False, True])
