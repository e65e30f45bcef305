"""The loss of a language model, against torch's own over all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lora_exp.train import vocabulary
from lora_exp.train.vocabulary import cross_entropy

ROWS, HIDDEN, VOCABULARY = 13, 8, 29


def given() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,)
    made = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    return made[0], made[1], made[2], targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [1, 5, 13, 100])
def test_loss_and_gradients_are_those_of_torch(
    smoothing: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "LOGITS", at_once * VOCABULARY)
    rows, weight, bias, targets = given()
    expected = F.cross_entropy(rows @ weight.T + bias, targets, label_smoothing=smoothing)
    theirs = torch.autograd.grad(expected * 3, (rows, weight, bias))
    loss = cross_entropy(rows, weight, bias, targets, smoothing=smoothing)
    ours = torch.autograd.grad(loss * 3, (rows, weight, bias))
    torch.testing.assert_close(loss, expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_smoothing_is_that_of_the_reference() -> None:
    """microsoft/LoRA, examples/NLG/src/model.py, GPT2LMModel.forward."""
    rows, weight, _, targets = given()
    logprobs = F.log_softmax(rows @ weight.T, dim=-1)
    nll_loss = -logprobs.gather(dim=-1, index=targets.unsqueeze(1)).squeeze(1)
    smooth_loss = -logprobs.mean(dim=-1)
    expected = ((1.0 - 0.1) * nll_loss + 0.1 * smooth_loss).mean()
    torch.testing.assert_close(cross_entropy(rows, weight, None, targets, smoothing=0.1), expected)


def test_logits_are_never_there_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "LOGITS", 4 * VOCABULARY)
    rows, weight, _, targets = given()
    sizes: list[int] = []
    original = F.linear

    def linear(*arguments: Tensor | None) -> Tensor:
        made = original(*arguments)  # type: ignore[arg-type]
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(F, "linear", linear)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()), lambda tensor: tensor
    ):
        cross_entropy(rows, weight.detach(), None, targets)
    assert sizes == [4 * VOCABULARY] * 3 + [VOCABULARY]
    assert kept == [ROWS * HIDDEN]


def test_nothing_to_predict_is_a_loss_of_nothing() -> None:
    rows, weight, bias, targets = given()
    loss = cross_entropy(rows[:0], weight, bias, targets[:0])
    gradients = torch.autograd.grad(loss, (rows, weight, bias))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


def test_bf16_is_close() -> None:
    rows, weight, bias, targets = given()
    exact = cross_entropy(rows, weight, bias, targets)
    rounded = cross_entropy(rows.bfloat16(), weight, bias, targets, dtype=torch.bfloat16)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
