"""Products with weights that were laid out before."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from lora_exp.lora import Linear
from lora_exp.train import prepacked
from lora_exp.train.prepacked import copied_bytes, prepack

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs a CPU with bf16"
)


def frozen(*sizes: int, bias: bool = True) -> Any:
    """Linear layers with weights in bf16 and biases in fp32."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(*pair, bias) for pair in pairwise(sizes)))
    for parameter in model.requires_grad_(False).parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if parameter.ndim > 1 else torch.float32)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 37, 64), (5, 64), (0, 64)])
def test_outputs_and_gradients_are_those_of_the_plain_layers(bias: bool, shape: tuple) -> None:
    model = frozen(64, 96, 32, bias=bias)
    found = []
    for one in (model, copy.deepcopy(model)):
        if one is not model:
            prepack(one)
        rows = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = one(rows)
        output.float().square().sum().backward()
        found.append((output, rows.grad))
    (plain, of_plain), (packed, of_packed) = found
    assert packed.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(packed, plain)
    torch.testing.assert_close(of_packed, of_plain, rtol=1.6e-2, atol=1e-2)


def test_parameters_stay_plain() -> None:
    model = frozen(64, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepack(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_is_trained_or_adapted_is_left_alone() -> None:
    model = frozen(64, 64, 64, 64, 64)
    model[0].weight.requires_grad_(True)
    model[1].bias.requires_grad_(True)
    model[2] = Linear.wrap(model[2], r=2, lora_alpha=4)
    prepack(model)
    assert ["forward" in vars(layer) for layer in model] == [False, False, False, True]


def test_models_that_share_weights_share_the_copies() -> None:
    model = frozen(64, 32)
    shared = {id(parameter): parameter for parameter in model.parameters()}
    other = copy.deepcopy(model, shared)
    prepack(model)
    prepack(other)
    assert model[0].forward.weight is other[0].forward.weight
    assert copied_bytes(model) == 2 * model[0].weight.nbytes
    known = len(prepacked._known)
    del model, other, shared
    assert len(prepacked._known) < known


def test_large_models_keep_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "LARGEST", 64 * 32)
    model = frozen(64, 32)
    prepack(model)
    assert copied_bytes(model) == 0
