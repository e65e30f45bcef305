"""Each layer against a dense computation of W + scaling B A, and at the edges of its arguments."""

from __future__ import annotations

from typing import Any

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lora_exp import lora

double: dict[str, Any] = {"dtype": torch.float64}  # so that no rounding is left to allow for
alphas = st.floats(0.5, 32)
ranks = st.integers(1, 5)
examples = settings(max_examples=50, deadline=None)

CONVOLUTIONS: dict[int, tuple[Any, Any]] = {
    1: (nn.Conv1d, lora.Conv1d),
    2: (nn.Conv2d, lora.Conv2d),
    3: (nn.Conv3d, lora.Conv3d),
}


# -- the formula -----------------------------------------------------------------------------------


@examples
@given(
    width=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    r=ranks,
    alpha=alphas,
    transposed=st.booleans(),
    bias=st.booleans(),
    merge=st.booleans(),
    batch=st.sampled_from([(), (0,), (4,), (2, 3), (2, 0, 3), (2, 3, 1)]),
)
def test_linear_is_the_formula(
    width: tuple[int, int],
    r: int,
    alpha: float,
    transposed: bool,
    bias: bool,
    merge: bool,
    batch: tuple[int, ...],
) -> None:
    layer = lora.Linear(
        *width, r, alpha, fan_in_fan_out=transposed, merge_weights=merge, bias=bias, **double
    )
    naive.check(layer, nn.Linear(*width, bias=bias), torch.randn(*batch, width[0], **double))


@examples
@given(
    slices=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 4), st.booleans()), min_size=1, max_size=4
    ).filter(lambda slices: any(rank and on for _, rank, on in slices)),
    features=st.integers(1, 9),
    alpha=alphas,
    transposed=st.booleans(),
    merge=st.booleans(),
    batch=st.sampled_from([(), (0,), (2, 3)]),
)
def test_merged_linear_is_the_formula(
    slices: list[tuple[int, int, bool]],
    features: int,
    alpha: float,
    transposed: bool,
    merge: bool,
    batch: tuple[int, ...],
) -> None:
    widths, own, enabled = zip(*slices, strict=True)
    layer = lora.MergedLinear(
        features,
        sum(widths),
        r=own,
        lora_alpha=alpha,
        enable_lora=enabled,
        fan_in_fan_out=transposed,
        merge_weights=merge,
        slice_widths=widths,
        **double,
    )
    naive.check(layer, nn.Linear(features, sum(widths)), torch.randn(*batch, features, **double))


@examples
@given(
    size=st.tuples(st.integers(2, 9), st.integers(1, 6)),
    r=ranks,
    padding=st.none() | st.integers(-2, 1),
    merge=st.booleans(),
    shape=st.sampled_from([(), (0,), (7,), (2, 5)]),
)
def test_embedding_is_the_formula(
    size: tuple[int, int],
    r: int,
    padding: int | None,
    merge: bool,
    shape: tuple[int, ...],
) -> None:
    layer = lora.Embedding(*size, r, 3, merge, padding_idx=padding, **double)
    plain = nn.Embedding(*size, padding_idx=padding)
    naive.check(layer, plain, torch.randint(size[0], shape))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """A number of dimensions and arguments of a convolution over them."""
    dimensions = draw(st.integers(1, 3))

    def extents(low: int, high: int) -> st.SearchStrategy[int | tuple[int, ...]]:
        one = st.integers(low, high)
        return one | st.tuples(*[one] * dimensions)

    groups = draw(st.integers(1, 3))
    found: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(extents(1, 3)),
        "stride": draw(extents(1, 2)),
        "padding": draw(st.sampled_from(["valid", "same"]) | extents(0, 2)),
        "dilation": draw(extents(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    if found["padding"] == "same":
        del found["stride"]
    return dimensions, found


@examples
@given(
    drawn=convolutions(), r=st.integers(1, 3), alpha=alphas, merge=st.booleans(), one=st.booleans()
)
def test_convolutions_are_the_formula(
    drawn: tuple[int, dict[str, Any]], r: int, alpha: float, merge: bool, one: bool
) -> None:
    dimensions, arguments = drawn
    plain, kind = CONVOLUTIONS[dimensions]
    layer = kind(**arguments, r=r, lora_alpha=alpha, merge_weights=merge, **double)
    size = [arguments["in_channels"], *[6, 5, 5][:dimensions]]
    x = torch.randn(*([] if one else [2]), *size, **double)  # a batch is optional
    naive.check(layer, plain(**arguments), x)


@examples
@given(
    r=ranks,
    alpha=alphas,
    transposed=st.booleans(),
    bias=st.booleans(),
    merge=st.booleans(),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_wrapped_layers_are_the_formula(
    r: int, alpha: float, transposed: bool, bias: bool, merge: bool, size: tuple[int, int]
) -> None:
    module = Conv1D(size[1], size[0]) if transposed else nn.Linear(*size, bias=bias)
    module.double()
    arguments: dict[str, Any] = {"r": r, "lora_alpha": alpha, "merge_weights": merge}
    for layer in (
        lora.Linear.wrap(module, **arguments, rslora=True),
        lora.MergedLinear.wrap(module, **arguments, enable_lora=[True]),
    ):
        plain = nn.Linear(*size, bias=layer.bias is not None)
        naive.check(layer, plain, torch.randn(2, 3, size[0], **double))


@pytest.mark.parametrize(
    ("kind", "plain", "x"),
    [
        (lora.Linear, nn.Linear(4, 6), torch.randn(3, 4)),
        (lora.Embedding, nn.Embedding(7, 4, padding_idx=1), torch.tensor([1, 2, 6])),
        (lora.Conv1d, nn.Conv1d(4, 6, 3, stride=2), torch.randn(2, 4, 9)),
        (
            lora.Conv2d,
            nn.Conv2d(4, 6, (3, 1), padding_mode="circular", padding=1),
            torch.randn(2, 4, 5, 6),
        ),
        (lora.Conv3d, nn.Conv3d(4, 6, 2, groups=2, bias=False), torch.randn(2, 4, 5, 6, 4)),
    ],
)
def test_wrapping_shares_the_weight_and_keeps_the_output(
    kind: Any, plain: nn.Module, x: torch.Tensor
) -> None:
    x = x.double() if x.is_floating_point() else x
    layer = kind.wrap(plain.double(), r=2, lora_alpha=4)
    assert layer.weight is plain.weight
    assert torch.equal(layer(x), plain(x))
    assert {name for name, p in layer.named_parameters() if p.requires_grad} >= {"lora_A", "lora_B"}
    assert not layer.weight.requires_grad
    naive.check(layer, plain, x)


# -- the edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        lora.Linear(6, 4),
        lora.Linear(6, 4, r=0, lora_dropout=0.5, fan_in_fan_out=True),
        lora.MergedLinear(6, 4, r=2),
        lora.MergedLinear(6, 4, r=2, enable_lora=[False, False]),
        lora.MergedLinear(6, 4, r=[0, 0], enable_lora=[True, True]),
        lora.DoraLinear(6, 4),
    ],
)
def test_rank_zero_and_no_enabled_slice_are_the_plain_linear_layer(layer: lora.Linear) -> None:
    x = torch.randn(3, 6)
    for training in (True, False):
        weight = layer.train(training).weight
        expected = F.linear(x, weight.T if layer.fan_in_fan_out else weight, layer.bias)
        assert torch.equal(layer(x), expected)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["weight", "bias"]
    assert not layer.merged


def test_rank_zero_is_the_plain_embedding_and_convolution() -> None:
    embedding, convolution = lora.Embedding(5, 4), lora.Conv2d(3, 4, 3)
    assert list(embedding.state_dict()) == ["weight"]
    assert torch.equal(embedding.eval()(torch.tensor([1])), embedding.weight[1:2])
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(convolution.eval()(x), F.conv2d(x, convolution.weight, convolution.bias))


def test_the_update_starts_at_zero() -> None:
    linear, embedding = lora.Linear(6, 4, r=2), lora.Embedding(6, 4, r=2)
    x, numbers = torch.randn(3, 6), torch.arange(6)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    assert torch.equal(embedding(numbers), embedding.weight)
    assert linear.lora_A.std() > 0
    assert embedding.lora_B.std() > 0


@pytest.mark.parametrize("kind", [lora.Linear, lora.MergedLinear, lora.DoraLinear])
def test_dropout_of_linear_layers_acts_in_training_only(kind: Any) -> None:
    slices: dict[str, Any] = {"enable_lora": [True, False]} if kind is lora.MergedLinear else {}
    layer = naive.fill(kind(6, 4, r=2, lora_dropout=0.9, **slices, **double))
    check_dropout(layer, torch.randn(8, 6, **double))


def test_dropout_of_convolutions_acts_in_training_only() -> None:
    layer = naive.fill(lora.Conv2d(4, 4, 3, r=2, lora_dropout=0.9, **double))
    check_dropout(layer, torch.randn(2, 4, 5, 5, **double))


def check_dropout(layer: Any, x: torch.Tensor) -> None:
    whole = layer.eval()(x)
    layer.train().lora_dropout.p = 0.0
    torch.testing.assert_close(layer(x), whole)
    layer.lora_dropout.p = 0.9
    assert not torch.allclose(layer(x), whole)
    average = torch.stack([layer(x) for _ in range(3000)]).mean(0)
    assert (average - whole).abs().max() < 0.5 * whole.abs().max()
    layer.lora_dropout.p = 1.0  # nothing of the update is left, but all of the plain layer
    if not isinstance(layer, lora.DoraLinear):
        torch.testing.assert_close(layer(x), layer._plain(x, layer.base_weight))


def test_input_that_is_not_contiguous() -> None:
    layer = naive.fill(lora.Linear(6, 4, r=2))
    x = torch.randn(6, 3, 2).transpose(0, 2)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    merged = naive.fill(lora.MergedLinear(6, 4, r=2, enable_lora=[True, False]))
    torch.testing.assert_close(merged(x), merged(x.contiguous()))


def test_frozen_embedding_of_sparse_gradients_is_trained() -> None:
    """Sparse gradients are for the table, which is frozen; torch has none for a transposed A."""
    sparse = naive.fill(lora.Embedding(9, 4, r=2, sparse=True))
    dense = lora.Embedding(9, 4, r=2)
    dense.load_state_dict(sparse.state_dict())
    numbers = torch.tensor([1, 1, 5])
    first, second = (
        torch.autograd.grad(layer(numbers).square().sum(), [layer.lora_A, layer.lora_B])
        for layer in (sparse, dense)
    )
    torch.testing.assert_close(first, second)


def test_embedding_with_max_norm_is_never_merged() -> None:
    layer = naive.fill(lora.Embedding(9, 4, r=2, max_norm=0.5)).eval()
    update = layer.lora_A.T @ layer.lora_B.T * layer.scaling
    found = layer(torch.arange(9))  # which shortens the rows of the table
    assert not layer.merged
    assert layer.weight.norm(dim=1).max() < 0.51
    torch.testing.assert_close(found, layer.weight + update)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_lora": [True, False, True]}, "10 outputs do not divide into 3"),
        ({"enable_lora": [True, False], "slice_widths": [5, 6]}, "that make up 10"),
        ({"enable_lora": [True, False], "slice_widths": [10]}, "that make up 10"),
        ({"enable_lora": [True, False], "r": [2, 2, 2]}, "one for each of the 2 slices"),
        ({"enable_lora": [True, False], "r": -1}, "a rank cannot be negative"),
    ],
)
def test_slices_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora.MergedLinear(6, 10, **{"r": 2, **arguments})


def test_a_module_with_a_forward_of_its_own_is_refused() -> None:
    module = nn.Linear(4, 4)
    module.forward = lambda input: input
    with pytest.raises(ValueError, match="forward was replaced"):
        lora.Linear.wrap(module, r=2)


def test_hooks_of_a_wrapped_module_go_on_and_can_be_removed() -> None:
    module, calls = nn.Linear(4, 4), []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    layer = lora.Linear.wrap(module, r=2)
    layer(torch.ones(4))
    handle.remove()
    layer(torch.ones(4))
    assert calls == [1]


def test_made_on_the_meta_device_then_filled() -> None:
    with torch.device("meta"):
        model: Any = nn.Sequential(
            lora.Embedding(5, 4, r=2),
            lora.Linear(4, 6, r=2, fan_in_fan_out=True),
            lora.DoraLinear(6, 6, r=2),
            lora.MergedLinear(6, 4, r=2, enable_lora=[True, False]),
        )
    assert model(torch.zeros(2, 3, dtype=torch.long, device="meta")).shape == (2, 3, 4)
    model.to_empty(device="cpu")
    for layer in model:
        layer.reset_parameters()
    numbers = torch.tensor([[0, 4]])
    plain = F.linear(model[0].weight[numbers], model[1].weight.T, model[1].bias)
    plain = F.linear(plain, model[2].weight, model[2].bias)
    plain = F.linear(plain, model[3].weight, model[3].bias)
    torch.testing.assert_close(model(numbers), plain)


@pytest.mark.parametrize("transposed", [False, True])
def test_resetting_starts_anew_also_while_merged(transposed: bool) -> None:
    layer = naive.fill(lora.Linear(400, 4, r=2, fan_in_fan_out=transposed)).eval()
    before, x = layer.base_weight.clone(), torch.randn(3, 400)
    layer.reset_parameters()
    assert layer.merged
    assert layer.base_weight.shape == before.shape
    assert not torch.equal(layer.base_weight, before)
    assert layer.base_weight.abs().max() <= 400**-0.5  # the bound of 400 inputs, not of 4
    with torch.no_grad():
        merged = layer(x)
    assert torch.equal(merged, layer.train()(x))


def test_what_is_printed() -> None:
    line = "in_features=6, out_features=4, bias=True, r=2, lora_alpha=8"
    assert line in repr(lora.Linear(6, 4, r=2, lora_alpha=8))
    assert "padding_idx=1, r=2, lora_alpha=1" in repr(lora.Embedding(6, 4, r=2, padding_idx=1))
    assert "kernel_size=(3, 3), stride=(1, 1), r=2" in repr(lora.Conv2d(6, 4, 3, r=2))
