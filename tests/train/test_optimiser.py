"""The schedule and the groups, against transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from lora_exp.runs.config import TrainConfig
from lora_exp.train.optimiser import Optimiser


def optimiser(total_steps: int = 20, **recipe: object) -> tuple[nn.Module, Optimiser]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    train = TrainConfig(lr=0.1, **recipe)  # type: ignore[arg-type]
    return net, Optimiser(dict(net.named_parameters()), train, total_steps)


@pytest.mark.parametrize("recipe", [{"warmup_ratio": 0.06}, {"warmup_steps": 7}, {}])
def test_learning_rates_are_those_of_transformers(recipe: dict[str, float]) -> None:
    _, ours = optimiser(33, **recipe)
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = get_linear_schedule_with_warmup(theirs, ours.warmup_steps, 33)
    for step in range(33):
        assert ours.learning_rate(step) == pytest.approx(schedule.get_last_lr()[0])
        theirs.step()
        schedule.step()


def test_biases_and_norms_do_not_decay() -> None:
    net, ours = optimiser(weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
    ours.update(0)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.weight"}


def test_decay_after_the_update_is_that_of_the_reference() -> None:
    """microsoft/LoRA, examples/NLG/src/optimizer.py: the update, then p -= lr * decay * p."""
    nets = []
    for recipe in ({"weight_decay": 0.5, "decay_after_update": True}, {}):
        net, ours = optimiser(warmup_steps=0, **recipe)
        for step in range(2):
            for number, parameter in enumerate(net.parameters()):
                assert parameter.grad is not None
                parameter.grad.fill_(0.1 * (number + 1 + step))
            rate = ours.learning_rate(step)
            ours.update(step)
            if not recipe:
                with torch.no_grad():
                    net[0].weight.add_(net[0].weight, alpha=-rate * 0.5)  # type: ignore
        nets.append(net)
    for (name, one), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (0.0, 6.0)])
def test_clipping(limit: float, expected: float) -> None:
    net, ours = optimiser(max_grad_norm=limit)
    norms = []
    original = ours.adam.step
    ours.adam.step = lambda: (  # type: ignore[method-assign]
        norms.append(sum(p.grad.square().sum() for p in net.parameters()) ** 0.5),  # type: ignore
        original(),
    )
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_((36 / 18) ** 0.5)  # 18 numbers, norm 6
    assert float(ours.update(3)) == pytest.approx(6.0)
    assert float(norms[0]) == pytest.approx(expected, rel=1e-4)
