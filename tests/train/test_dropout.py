"""Dropout by seed, step and place."""

from __future__ import annotations

import pytest
import torch

from lora_exp.train.dropout import Draws, Dropout, drawing, place_of

SPANS = {10: [slice(0, 4), slice(4, 10)]}


@pytest.mark.parametrize("probability", [1e-7, 0.1, 0.5, 0.9, 1 - 1e-7])
def test_as_many_as_asked_for_are_dropped_and_the_rest_is_stretched(probability: float) -> None:
    mask = Draws([5]).mask(0, 1, torch.empty(1000, 1000), probability)
    assert mask.isfinite().all()
    assert float((mask == 0).float().mean()) == pytest.approx(probability, abs=2e-3)
    if 0.01 < probability < 0.99:
        assert float(mask.mean()) == pytest.approx(1, abs=5e-3)
        assert mask.unique().numel() == 2


def test_each_run_draws_what_it_draws_alone() -> None:
    together = Draws([3, 8], SPANS).masks(7, torch.empty(1, 10, 6), 0.5)[0]
    for number, stream in enumerate([3, 8]):
        alone = Draws([stream]).mask(0, 7, together[SPANS[10][number]], 0.5)
        assert torch.equal(together[SPANS[10][number]], alone)


def test_other_streams_and_places_draw_others() -> None:
    like = torch.empty(100)
    masks = [
        Draws([stream]).mask(0, place, like, 0.5)
        for stream in (1, 2)
        for place in (place_of("a"), place_of("b"))
    ]
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    assert torch.equal(masks[0], Draws([1]).mask(0, place_of("a"), like, 0.5))


def test_the_layer_drops_in_training_alone() -> None:
    layer, given = Dropout(0.5), torch.ones(1, 10, 6)
    with drawing(Draws([3, 8], SPANS)):
        dropped = layer.train()(given)
        assert torch.equal(dropped, layer(given))  # however often it is computed
        assert torch.equal(layer.eval()(given), given)
    assert {*dropped.flatten().tolist()} == {0.0, 2.0}
