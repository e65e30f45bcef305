"""Layers and state dictionaries against loralib's, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import loralib
import naive
import pytest
import torch
from torch import Tensor, nn

from lora_exp import lora

Case = tuple[str, tuple[Any, ...], dict[str, Any], Tensor]


def case(kind: str, *sizes: Any, input: Tensor, **arguments: Any) -> Any:
    """A layer of loralib and of ours, and an input."""
    shown = "-".join(f"{key}={value}" for key, value in arguments.items())
    return pytest.param((kind, sizes, arguments, input), id=f"{kind}-{shown}")


ROWS, NUMBERS = torch.randn(3, 5, 6), torch.tensor([[0, 1, 1], [7, 1, 3]])
IMAGE = torch.randn(2, 4, 6, 5)
ON = [True, False, True]

# Everything that works in loralib: its Conv1d and Conv3d do with kernels of one only, and no
# convolution with tuples; MergedLinear with nothing enabled raises.
CASES = [
    case("Linear", 6, 4, input=ROWS),
    case("Linear", 6, 4, r=2, lora_alpha=8, input=ROWS),
    case("Linear", 6, 4, r=2, bias=False, merge_weights=False, input=ROWS),
    case("Linear", 6, 4, r=3, fan_in_fan_out=True, input=ROWS),
    case("Linear", 6, 4, r=2, lora_dropout=0.3, input=ROWS),
    case("MergedLinear", 6, 12, enable_lora=ON, input=ROWS),
    case("MergedLinear", 6, 12, r=2, lora_alpha=8, enable_lora=ON, input=ROWS),
    case("MergedLinear", 6, 12, r=2, enable_lora=[True], bias=False, input=ROWS),
    case("MergedLinear", 6, 12, r=2, enable_lora=[True] * 3, merge_weights=False, input=ROWS),
    case("MergedLinear", 6, 12, r=3, enable_lora=[False, True], fan_in_fan_out=True, input=ROWS),
    case("MergedLinear", 6, 12, r=2, enable_lora=ON, lora_dropout=0.3, input=ROWS),
    case("Embedding", 8, 5, input=NUMBERS),
    case("Embedding", 8, 5, r=2, lora_alpha=8, padding_idx=1, input=NUMBERS),
    case("Embedding", 8, 5, r=3, merge_weights=False, scale_grad_by_freq=True, input=NUMBERS),
    case("Conv2d", 4, 6, 3, input=IMAGE),
    case("Conv2d", 4, 6, 3, r=2, lora_alpha=8, stride=2, input=IMAGE),
    case("Conv2d", 4, 6, 3, r=2, groups=2, padding="same", bias=False, input=IMAGE),
    case("Conv2d", 4, 6, 2, r=1, dilation=2, merge_weights=False, input=IMAGE),
    case("Conv2d", 4, 6, 3, r=2, padding=1, padding_mode="circular", input=IMAGE),
    case("Conv1d", 4, 6, 1, r=2, stride=2, input=IMAGE[..., 0]),
    case("Conv3d", 4, 6, 1, r=2, groups=2, input=IMAGE[None].transpose(1, 2)),
]


def make(one: Case) -> tuple[Any, Any, Tensor]:
    """Our layer, loralib's with the same values, and an input, all in double precision: no rounding
    is left to allow for."""
    kind, sizes, arguments, input = one
    ours = naive.fill(getattr(lora, kind)(*sizes, **arguments)).double()
    theirs = getattr(loralib, kind)(*sizes, **arguments).double()
    theirs.load_state_dict(to_loralib(ours.state_dict(), theirs))
    return ours, theirs, input.double() if input.is_floating_point() else input


def to_loralib(state: dict[str, Tensor], layer: nn.Module) -> dict[str, Tensor]:
    """Its convolutions hold the plain one as `conv`."""
    inside = "conv." if hasattr(layer, "conv") else ""
    return {n if n.startswith("lora_") else inside + n: value for n, value in state.items()}


def trained(layer: nn.Module) -> dict[str, nn.Parameter]:
    found = {n.removeprefix("conv."): p for n, p in layer.named_parameters() if p.requires_grad}
    return dict(sorted(found.items()))


@pytest.mark.parametrize("one", CASES)
def test_outputs_and_gradients(one: Case) -> None:
    ours, theirs, input = make(one)
    for training in (True, False, True):
        found, gradients = [], []
        for layer in (ours, theirs):
            layer.train(training)
            x = input.clone().requires_grad_(input.is_floating_point())
            torch.manual_seed(0)  # of the dropout
            found.append(layer(x))
            if training:  # not merged, where loralib's factors have no gradient
                at = [*trained(layer).values(), *([x] if x.requires_grad else [])]
                gradients.append(torch.autograd.grad(found[-1].square().sum(), at))
        torch.testing.assert_close(*found)
        if training:
            assert list(trained(ours)) == list(trained(theirs))
            torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("one", CASES)
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_a_training_step(one: Case, optimiser: Callable[..., torch.optim.Optimizer]) -> None:
    ours, theirs, input = make(one)
    for layer in (ours, theirs):
        steps = optimiser(trained(layer).values(), lr=0.01)
        torch.manual_seed(0)
        layer(input).square().sum().backward()
        steps.step()
    torch.testing.assert_close(to_loralib(ours.state_dict(), theirs), theirs.state_dict())
    theirs.eval()
    torch.testing.assert_close(ours.eval()(input), theirs(input))


@pytest.mark.parametrize("one", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_state_dictionaries_go_both_ways(one: Case, training: bool) -> None:
    """Ours may be taken and loaded merged; loralib's are right only while it trains."""
    ours, theirs, input = make(one)
    expected = ours.eval()(input)
    other = getattr(lora, one[0])(*one[1], **one[2]).double().train(training)
    other.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(other.eval()(input), expected)
    others = getattr(loralib, one[0])(*one[1], **one[2]).double()
    others.load_state_dict(to_loralib(ours.train(training).state_dict(), others))
    others.eval()
    torch.testing.assert_close(others(input), expected)


def model(library: Any) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "embedding": library.Embedding(5, 4, r=1),
            "linear": library.Linear(4, 4, r=1),
            "fused": library.MergedLinear(4, 8, r=1, enable_lora=[True, False], bias=False),
            "convolution": library.Conv2d(4, 4, 3, r=1),
            "plain": nn.Linear(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
        }
    )


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_what_is_trained_and_saved(bias: Any) -> None:
    names: list[set[str]] = []
    for library in (lora, loralib):
        layers = model(library)
        library.mark_only_lora_as_trainable(layers, bias)
        trained = [name for name, p in layers.named_parameters() if p.requires_grad]
        for found in (trained, library.lora_state_dict(layers, bias)):
            names.append({name.replace(".conv.", ".") for name in found})
    if bias == "lora_only":  # loralib does not find the biases of its convolutions
        names[2:] = [found | {"convolution.bias"} for found in names[2:]]
    assert names[0] == names[1] == names[2] == names[3]


def test_lora_state_dict_loads_in_loralib_and_back() -> None:
    ours, theirs, back = naive.fill(model(lora)).eval(), model(loralib), model(lora).eval()
    assert not theirs.load_state_dict(lora.lora_state_dict(ours), strict=False).unexpected_keys
    assert not back.load_state_dict(loralib.lora_state_dict(theirs), strict=False).unexpected_keys
    for name, value in lora.lora_state_dict(ours).items():
        assert torch.equal(back.state_dict()[name], value)


def test_the_kernel_is_reached_as_in_loralib() -> None:
    """As model code copies pre-trained kernels into loralib's layers."""
    plain: Any = nn.Conv2d(4, 4, 3)
    for library in (lora, loralib):
        layer: Any = library.Conv2d(4, 4, 3, r=1)
        layer.conv.weight.data = plain.weight.data
        layer.conv.bias.data = plain.bias.data
        input = torch.randn(1, 4, 5, 5)
        torch.testing.assert_close(layer(input), plain(input))
    assert not any("conv" in name for name, _ in lora.Conv2d(4, 4, 3, r=1).named_modules())
