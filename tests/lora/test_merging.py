"""eval() merges and train() unmerges: exactly, whatever is done to the layer in between."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import naive
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_exp import lora

KINDS = list(naive.every_kind())
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def outputs(layer: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def bits(weight: Tensor) -> bytes:
    return weight.detach().contiguous().view(torch.uint8).numpy().tobytes()


@every_kind
@every_dtype
def test_the_weight_is_byte_identical_after_many_cycles(kind: str, dtype: torch.dtype) -> None:
    layer, _ = naive.every_kind(dtype)[kind]
    weight, before = layer.weight, bits(layer.weight)
    for _ in range(1000):
        layer.eval()
        layer.train()
    assert layer.weight is weight
    assert bits(weight) == before


@every_dtype
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dora"])
def test_the_merged_weight_is_a_sum_in_float32_rounded_once(kind: str, dtype: torch.dtype) -> None:
    layer, _ = naive.every_kind(dtype)[kind]
    with torch.no_grad():  # whole numbers, whose products are exact
        layer.lora_A.copy_(torch.randint(-9, 9, layer.lora_A.shape))
        layer.lora_B.copy_(torch.randint(-9, 9, layer.lora_B.shape))
    update = naive.delta(layer, layer.lora_A.double(), layer.lora_B.double())
    if kind == "transposed":
        update = update.T
    expected = (layer.weight.double() + update).float().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):  # does not reach the merge
        layer.eval()
    assert torch.equal(layer.weight, expected)


@every_kind
def test_merged_and_not_are_equal(kind: str) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    expected = outputs(layer, x)
    torch.testing.assert_close(outputs(layer.eval(), x), expected)
    assert layer.merged
    assert torch.equal(outputs(layer.train(), x), expected)
    assert not layer.merged


@every_kind
def test_the_state_dict_is_that_of_the_layer_unmerged(kind: str) -> None:
    layer, _ = naive.every_kind()[kind]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    after = layer.eval().state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(value.requires_grad for value in after.values())
    assert layer.state_dict(keep_vars=True)["weight"] is layer.train().weight


@every_kind
@pytest.mark.parametrize("assign", [False, True])
def test_what_is_loaded_while_merged_takes_effect(kind: str, assign: bool) -> None:
    layer, x = naive.every_kind()[kind]
    other, _ = naive.every_kind()[kind]
    layer.eval().load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    assert layer.merged
    assert torch.equal(outputs(layer, x), outputs(other.eval(), x))
    assert torch.equal(outputs(layer.train(), x), outputs(other.train(), x))


@every_kind
def test_a_plain_checkpoint_loaded_while_merged_takes_effect(kind: str) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    new = {"weight": torch.randn_like(layer.weight)}
    missing, unexpected = layer.eval().load_state_dict(new, strict=False)
    assert (sorted(missing)[-2:], unexpected) == (["lora_A", "lora_B"], []) or kind == "dora"
    assert torch.equal(layer.base_weight, new["weight"])
    torch.testing.assert_close(outputs(layer, x), outputs(layer.train(), x))


@every_kind
def test_without_merge_weights_nothing_is_merged_unless_asked_for(kind: str) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    layer.merge_weights = False
    expected = outputs(layer.eval(), x)
    assert not layer.merged
    layer.merge()
    assert layer.merged
    torch.testing.assert_close(outputs(layer, x), expected)
    layer.train()
    assert layer.merged
    layer.unmerge()
    layer.unmerge()
    assert not layer.merged


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_copies_are_whole_and_apart(kind: str, training: bool) -> None:
    layer, x = naive.every_kind()[kind]
    expected = outputs(layer.train(training), x)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ):
        assert other.merged is not training
        assert torch.equal(outputs(other, x), expected)
        with torch.no_grad():
            other.base_weight.add_(1)
            other.lora_A.add_(1)
        other.train()
        assert not torch.equal(outputs(other, x), expected)
    assert torch.equal(outputs(layer.eval().train(training), x), expected)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_conversion_while_merged_is_that_of_the_parts(kind: str, dtype: torch.dtype) -> None:
    layer, _ = naive.every_kind()[kind]
    other = copy.deepcopy(layer).to(dtype).eval()
    layer.eval().to(dtype)
    assert layer.merged
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.train().weight, other.train().weight)


@every_kind
@pytest.mark.parametrize("fused", [True, False])  # of which one leaves no trace in the parameters
def test_training_in_eval_mode(kind: str, fused: bool) -> None:
    """The factors have gradients, and their new values take effect."""
    layer, x = naive.every_kind(torch.float64)[kind]
    layer.eval()
    trained = [p for p in layer.parameters() if p.requires_grad]
    steps = torch.optim.AdamW(trained, lr=0.1, fused=fused)
    for _ in range(2):
        before = outputs(layer, x)
        layer(x).square().sum().backward()
        assert layer.lora_A.grad.any()
        assert layer.lora_B.grad.any()
        steps.step()
        steps.zero_grad()
        after = outputs(layer, x)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, layer(x).detach())
        assert layer.merged
    naive.fill(layer)
    torch.testing.assert_close(outputs(layer, x), outputs(layer.train(), x))


@every_kind
def test_only_what_is_trained_decides_how_gradients_are_taken(kind: str) -> None:
    layer, x = naive.every_kind()[kind]
    layer.eval().lora_A.requires_grad = False
    layer(x).square().sum().backward()
    assert layer.lora_B.grad.any()
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    if x.is_floating_point():  # through the merged weight
        layer(x.requires_grad_()).sum().backward()
        assert x.grad is not None
    layer.requires_grad_(True)
    assert layer.train().weight.requires_grad is False  # W was frozen, and stays so


@every_kind
def test_an_eval_after_another_renews(kind: str) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    merged, base = layer.eval().weight, layer.base_weight.clone()
    layer.lora_B.data.mul_(2)  # .data: behind the back of everything that could notice
    layer.eval()
    assert layer.weight is merged
    torch.testing.assert_close(outputs(layer, x), outputs(layer.train(), x))
    assert torch.equal(layer.weight, base)


def test_a_rank_of_zero_is_never_merged() -> None:
    layer = lora.Linear(4, 4).eval()
    layer.merge()
    assert not layer.merged
    assert layer.weight.requires_grad


# -- tied weights ----------------------------------------------------------------------------------


class Tied(nn.Module):
    """As GPT-2: the output projection is the table of the words."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = lora.Embedding(7, 4, r=2)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, numbers: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.wte(numbers)))


def test_tied_weights_stay_tied_and_the_other_one_is_not_updated() -> None:
    model, numbers = naive.fill(Tied().double()), torch.arange(7)
    before, weight = outputs(model, numbers), model.wte.weight.clone()
    torch.testing.assert_close(outputs(model.eval(), numbers), before)
    state = copy.deepcopy(model.state_dict())
    assert torch.equal(state["wte.weight"], state["lm_head.weight"])
    model.load_state_dict(state)
    assert torch.equal(outputs(model.train(), numbers), before)
    assert model.lm_head.weight is model.wte.weight
    assert torch.equal(model.wte.weight, weight)
    copied = copy.deepcopy(model.eval()).train()
    assert copied.lm_head.weight is copied.wte.weight
    converted = copied.eval().to(torch.float32).train()
    assert converted.lm_head.weight is converted.wte.weight


@pytest.mark.parametrize("training", [True, False])
def test_tied_weights_are_not_written_merged(training: bool) -> None:
    model = naive.fill(Tied()).train(training)
    with pytest.raises(lora.AdapterError, match="wte and lm_head share one weight"):
        lora.merged_state_dict(model)
    model.lm_head.weight = nn.Parameter(model.wte.base_weight.clone())
    merged = lora.merged_state_dict(model)
    torch.testing.assert_close(merged["wte.weight"], model.eval().wte.weight)


def test_a_merged_state_dict_is_the_plain_model() -> None:
    layers = {name: layer for name, (layer, _) in naive.every_kind(torch.float64).items()}
    model = nn.ModuleDict(layers).train()
    merged = lora.merged_state_dict(model)
    assert not [name for name in merged if "lora_" in name]
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = F.linear(x, merged["dora.weight"], merged["dora.bias"])
    torch.testing.assert_close(layers["dora"](x), expected)


def test_what_is_tied_while_merged_is_the_plain_weight_afterwards() -> None:
    table = lora.Embedding(6, 4, r=2)
    naive.fill(nn.Sequential(table))
    before = table.weight.clone()
    table.eval()
    head = nn.Linear(4, 6, bias=False)
    head.weight = table.weight  # type: ignore[assignment]
    table.train()
    assert torch.equal(head.weight, before)
    assert torch.equal(table.eval().base_weight, before)
    assert torch.equal(head.weight, before)


def test_a_weight_assigned_while_merged_takes_effect() -> None:
    layer = lora.Linear(4, 3, r=2)
    naive.fill(nn.Sequential(layer))
    layer.eval()
    layer.weight = nn.Parameter(torch.ones(3, 4), requires_grad=False)
    layer.eval()
    expected = 1 + layer.scaling * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.weight, expected)
    layer.train()
    assert torch.equal(layer.weight, torch.ones(3, 4))
