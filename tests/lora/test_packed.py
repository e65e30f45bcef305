"""Adapters trained together: equal to each alone, and never mixed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lora_exp import lora

SIZES = [3, 1, 4]
SPANS = {8: [slice(0, 3), slice(3, 4), slice(4, 8)]}
LAYERS: dict[str, Callable[[int], lora.LoraLayer]] = {
    "linear": lambda r: lora.Linear(6, 5, r=r, lora_alpha=3, merge_weights=False),
    "without bias": lambda r: lora.Linear(6, 5, r=r, bias=False, merge_weights=False),
    "transposed": lambda r: lora.Linear(6, 5, r=r, fan_in_fan_out=True, merge_weights=False),
    "slices": lambda r: lora.MergedLinear(
        6, 9, r=r, enable_lora=[True, False, True], merge_weights=False
    ),
    "embedding": lambda r: lora.Embedding(7, 5, r=r, merge_weights=False),
}


def no_mask(name: str, number: int, like: Tensor, probability: float) -> Tensor:
    raise AssertionError("there is no dropout")


def models(kind: str) -> list[nn.ModuleDict]:
    """Three with the same frozen weight and factors of their own, of ranks 2, 1 and 4."""
    torch.manual_seed(0)
    first = LAYERS[kind](2)
    made = []
    for rank in (2, 1, 4):
        layer = LAYERS[kind](rank)
        layer.weight = first.weight
        if isinstance(layer, nn.Linear) and isinstance(first, nn.Linear):
            layer.bias = first.bias
        layer.requires_grad_(False)
        for factor in (layer.lora_A, layer.lora_B):
            factor.requires_grad_(True)
            nn.init.normal_(factor)
        made.append(nn.ModuleDict({"one": layer}))
    return made


def some_input(kind: str, leading: tuple[int, ...] = (8,)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "embedding":
        return torch.randint(0, 7, leading, generator=generator)
    return torch.randn(*leading, 6, generator=generator, requires_grad=True)


@pytest.mark.parametrize("leading", [(8,), (1, 8)])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_equal_those_of_each_alone(
    kind: str, leading: tuple[int, ...]
) -> None:
    packed, alone = models(kind), models(kind)
    given, apart = some_input(kind, leading), some_input(kind, leading)
    with lora.packed([dict(lora.lora_layers(model)) for model in packed], SPANS, no_mask):
        output = packed[0]["one"](given)
    dimension = len(leading) - 1
    parts = zip(alone, apart.split(SIZES, dimension), strict=True)
    expected = torch.cat([model["one"](part) for model, part in parts], dimension)
    torch.testing.assert_close(output, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(packed, alone, strict=True):
        for name, parameter in one.named_parameters():
            theirs = dict(other.named_parameters())[name].grad
            torch.testing.assert_close(parameter.grad, theirs, msg=name)
    if given.requires_grad:
        torch.testing.assert_close(given.grad, apart.grad)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_not_a_number_stays_with_its_adapter(kind: str) -> None:
    good, bad = models(kind), models(kind)
    nn.init.constant_(bad[1]["one"].lora_A, float("nan"))  # type: ignore[arg-type]
    nn.init.constant_(bad[1]["one"].lora_B, float("nan"))  # type: ignore[arg-type]
    outputs = []
    for three in (good, bad):
        given = some_input(kind)
        with lora.packed([dict(lora.lora_layers(model)) for model in three], SPANS, no_mask):
            outputs.append(three[0]["one"](given))
        outputs[-1].square().sum().backward()
    assert outputs[1][3].isnan().all()
    for number, span in ((0, slice(0, 3)), (2, slice(4, 8))):
        assert torch.equal(outputs[0][span], outputs[1][span])
        for name, parameter in good[number].named_parameters():
            theirs = dict(bad[number].named_parameters())[name]
            if parameter.grad is not None:
                assert theirs.grad is not None
                assert torch.equal(parameter.grad, theirs.grad)


def test_dropout_is_the_mask_that_is_given() -> None:
    first, second = models("linear")[:2]
    for model in (first, second):
        model["one"].lora_dropout = nn.Dropout(0.5)
    masks = {0: torch.tensor([[0.0], [2.0], [2.0]]), 1: torch.tensor([[2.0]])}

    def mask(name: str, number: int, like: Tensor, probability: float) -> Tensor:
        assert (name, probability) == ("one", 0.5)
        return masks[number].expand_as(like)

    given = some_input("linear", (4,))
    layers = [dict(lora.lora_layers(one)) for one in (first, second)]
    with lora.packed(layers, {4: [slice(0, 3), slice(3, 4)]}, mask):
        output = first["one"](given)
    layer = first["one"]
    assert isinstance(layer, lora.Linear)
    factors = layer.lora_B @ layer.lora_A * layer.scaling
    plain = nn.functional.linear(given, layer.weight, layer.bias)
    torch.testing.assert_close(output[0], plain[0])
    torch.testing.assert_close(output[1:3], (plain + 2 * given @ factors.T)[1:3])
    output.sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad[0], layer.weight.sum(0))
    assert second["one"].lora_A.grad is not None
    # In inference nothing is dropped, and no mask is asked for.
    first.eval()
    second.eval()
    with lora.packed(layers, {4: [slice(0, 3), slice(3, 4)]}, no_mask):
        torch.testing.assert_close(first["one"](given)[:1], (plain + given @ factors.T)[:1])


def test_the_layers_are_as_before_afterwards() -> None:
    three = models("linear")
    layers = [dict(lora.lora_layers(model)) for model in three]
    before = three[0]["one"](some_input("linear"))
    with pytest.raises(KeyError), lora.packed(layers, SPANS, no_mask):
        three[0]["one"](some_input("linear", (5,)))  # for five rows nothing is said
    assert torch.equal(three[0]["one"](some_input("linear")), before)
