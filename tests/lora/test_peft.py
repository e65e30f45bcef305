"""Layers against PEFT's, with the same weights: outputs, gradients and a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import naive
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_exp import lora

ROWS, NUMBERS = torch.randn(3, 5, 6).double(), torch.tensor([[0, 1, 1], [7, 1, 3]])
IMAGE = torch.randn(2, 4, 6, 5, 4).double()


def theirs(plain: nn.Module, **arguments: Any) -> Any:
    """PEFT's layer over a copy of a plain one."""
    given = {"r": 2, "lora_alpha": 6, "target_modules": ["0"], "init_lora_weights": False}
    given |= {"fan_in_fan_out": isinstance(plain, Conv1D)}
    config = peft.LoraConfig(**(given | arguments))
    model: Any = peft.get_peft_model(nn.Sequential(copy.deepcopy(plain)), config)
    return model.base_model.model[0]


def factors(layer: Any) -> dict[str, Any]:
    """What PEFT trains in a layer, by the names of loralib."""
    if layer.lora_embedding_A:
        return {
            "lora_A": layer.lora_embedding_A["default"],
            "lora_B": layer.lora_embedding_B["default"],
        }
    found = {name: getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B")}
    if layer.lora_magnitude_vector:
        found["lora_magnitude_vector"] = layer.lora_magnitude_vector["default"].weight
    return found


@torch.no_grad()
def give(ours: lora.LoraLayer, layer: Any) -> None:
    """Let PEFT's layer hold the values of ours."""
    own: dict[str, Tensor] = dict(ours.named_parameters())
    own["lora_A"], own["lora_B"] = ours.dense(ours.lora_A, ours.lora_B)
    for name, parameter in factors(layer).items():
        parameter.copy_(own[name])


def gradients(output: Tensor, at: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output.square().sum(), at)


SAME = [  # layers whose factors PEFT holds in the same form
    pytest.param(lora.Linear, nn.Linear(6, 4), ROWS, {}, id="linear"),
    pytest.param(lora.Linear, nn.Linear(6, 4, bias=False), ROWS, {"rslora": True}, id="rslora"),
    pytest.param(lora.Linear, Conv1D(4, 6), ROWS, {"lora_dropout": 0.3}, id="conv1d"),
    pytest.param(lora.Embedding, nn.Embedding(8, 4, padding_idx=1), NUMBERS, {}, id="embedding"),
    pytest.param(
        lora.Embedding, nn.Embedding(8, 4, scale_grad_by_freq=True), NUMBERS, {}, id="frequency"
    ),
    pytest.param(lora.DoraLinear, nn.Linear(6, 4), ROWS, {}, id="dora"),
    pytest.param(lora.DoraLinear, nn.Linear(6, 4), ROWS, {"lora_dropout": 0.3}, id="dora-dropout"),
    pytest.param(
        lora.DoraLinear, nn.Linear(6, 4, bias=False), ROWS, {"rslora": True}, id="dora-rslora"
    ),
    pytest.param(lora.DoraLinear, Conv1D(4, 6), ROWS, {"lora_dropout": 0.3}, id="dora-conv1d"),
]


def both(kind: Any, plain: nn.Module, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Our layer and PEFT's with the same values."""
    ours = kind.wrap(copy.deepcopy(plain), r=2, lora_alpha=6, **arguments)
    given = {"use_rslora": arguments.get("rslora", False), "use_dora": kind is lora.DoraLinear}
    layer = theirs(plain, lora_dropout=arguments.get("lora_dropout", 0.0), **given)
    if kind is lora.DoraLinear:
        with torch.no_grad():
            ours.lora_magnitude_vector *= 1 + torch.rand(4)
    give(naive.fill(ours), layer)
    return ours.double(), layer.double()


@pytest.mark.parametrize(("kind", "plain", "x", "arguments"), SAME)
def test_outputs_and_gradients(kind: Any, plain: nn.Module, x: Tensor, arguments: Any) -> None:
    ours, layer = both(kind, plain, arguments)
    for training in (True, False):
        found, slopes = [], []
        for one, held in ((ours, dict(ours.named_parameters())), (layer, factors(layer))):
            input = x.clone().requires_grad_(x.is_floating_point())
            torch.manual_seed(0)  # of the dropout
            found.append(one.train(training)(input))
            at = [held[name] for name in factors(layer)] + [input] * input.requires_grad
            slopes.append(gradients(found[-1], at))
        torch.testing.assert_close(*found)
        torch.testing.assert_close(*slopes)
    with torch.no_grad():  # now ours is merged
        torch.testing.assert_close(ours(x), layer(x))


@pytest.mark.parametrize(("kind", "plain", "x", "arguments"), SAME)
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_a_training_step(
    kind: Any,
    plain: nn.Module,
    x: Tensor,
    arguments: Any,
    optimiser: Callable[..., torch.optim.Optimizer],
) -> None:
    ours, layer = both(kind, plain, arguments)
    held = factors(layer)
    for one, trained in ((ours, [getattr(ours, n) for n in held]), (layer, list(held.values()))):
        steps = optimiser(trained, lr=0.01)
        torch.manual_seed(0)
        one.train()(x).square().sum().backward()
        steps.step()
    for name, parameter in held.items():
        torch.testing.assert_close(getattr(ours, name), parameter)
    torch.testing.assert_close(ours.eval()(x), layer.eval()(x))


CONVOLUTIONS = [
    pytest.param(lora.Conv1d, nn.Conv1d(4, 6, 3, stride=2, padding=1), IMAGE[..., 0, 0], id="1d"),
    pytest.param(lora.Conv2d, nn.Conv2d(4, 6, (3, 2), padding=(0, 1)), IMAGE[..., 0], id="2d"),
    pytest.param(lora.Conv2d, nn.Conv2d(4, 6, (1, 3), padding="same"), IMAGE[..., 0], id="same"),
    pytest.param(lora.Conv3d, nn.Conv3d(4, 6, (2, 3, 1), bias=False), IMAGE, id="3d"),
]


@pytest.mark.parametrize(("kind", "plain", "x"), CONVOLUTIONS)
def test_convolutions_to_peft_and_back(kind: Any, plain: Any, x: Tensor) -> None:
    ours = naive.fill(kind.wrap(copy.deepcopy(plain), r=2, lora_alpha=6)).double()
    rank = 2 * plain.kernel_size[0] ** 2
    layer = theirs(plain, r=rank, lora_alpha=3 * rank).double()
    give(ours, layer)
    compare(ours, layer, x)

    layer = theirs(plain).double()  # a rank of PEFT fits into the same rank of ours
    ours.put(*ours.fit(*(p.detach() for p in factors(layer).values())), scaling=3.0)
    compare(ours, layer, x)


def compare(ours: Any, layer: Any, x: Tensor) -> None:
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [one(input) for one, input in zip((ours, layer), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    slopes = [gradients(out, [x]) for out, x in zip(outputs, inputs, strict=True)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    "arguments", [{"groups": 2}, {"dilation": 2}, {"padding": 1, "padding_mode": "circular"}]
)
def test_convolutions_that_peft_computes_otherwise_are_refused(arguments: dict[str, Any]) -> None:
    layer = lora.Conv2d(4, 6, 3, r=2, **arguments)
    with pytest.raises(ValueError, match="PEFT has no LoRA"):
        layer.dense(layer.lora_A, layer.lora_B)
    with pytest.raises(ValueError, match="instead of"):
        layer.fit(torch.ones(2, 4, 3, 3), torch.ones(6, 2, 1, 1))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 4, 1, 3), (6, 2, 1, 1)),  # as many values, but another kernel
        ((2, 4, 3, 3), (6, 2, 1, 1)),
        ((2, 4, 3), (6, 2, 1)),
        ((3, 4, 3, 1), (6, 2, 1, 1)),
        ((2, 4, 3, 1), (5, 2, 1, 1)),
        ((6, 4), (18, 5)),
    ],
)
def test_factors_of_another_convolution_are_refused(a: tuple[int], b: tuple[int]) -> None:
    with pytest.raises(ValueError, match="A and B are"):
        lora.Conv2d(4, 6, (3, 1), r=2).fit(torch.ones(a), torch.ones(b))


@pytest.mark.parametrize("ranks", [[2, 0, 2], [1, 4, 2]])
@pytest.mark.parametrize("rslora", [True, False])
def test_slices_to_peft_and_back(ranks: list[int], rslora: bool) -> None:
    plain = nn.Linear(6, 10)
    given: dict[str, Any] = {"enable_lora": [True] * 3, "slice_widths": [5, 2, 3], "rslora": rslora}
    ours = naive.fill(lora.MergedLinear.wrap(plain, r=ranks, lora_alpha=6, **given)).double()
    rank = sum(ranks)
    layer = theirs(plain, r=rank, lora_alpha=ours.scaling * rank).double()
    give(ours, layer)
    compare(ours, layer, ROWS)

    other = lora.MergedLinear.wrap(plain, r=ranks, lora_alpha=6, **given).double()
    other.put(*other.fit(*(p.detach() for p in factors(layer).values())), scaling=ours.scaling)
    compare(other, layer, ROWS)


def test_an_update_of_more_than_the_slices_is_refused() -> None:
    layer = lora.MergedLinear(6, 12, r=2, enable_lora=[True, False])
    with pytest.raises(ValueError, match="not one of these slices alone"):
        layer.fit(torch.ones(2, 6), torch.ones(12, 2))
    layer = lora.MergedLinear(6, 12, r=[1, 3, 4], enable_lora=[True] * 3)
    with pytest.raises(ValueError, match="4 rows of A do not divide as the ranks"):
        layer.fit(torch.ones(4, 6), torch.ones(12, 2))
