"""Several adapters on one model: switched, combined, and each row of a batch its own."""

from __future__ import annotations

import copy
from typing import Any

import naive
import pytest
import torch
from torch import Tensor, nn

from lora_exp import lora

Inputs = dict[str, Tensor]
KINDS = [kind for kind in naive.every_kind() if kind != "dora"]
every_kind = pytest.mark.parametrize("kind", KINDS)


class Layers(nn.ModuleDict):
    """A layer of each kind side by side, in double precision, and adapters of random values."""

    def __init__(self, *names: str) -> None:
        kinds = naive.every_kind(torch.float64)
        super().__init__({kind: kinds[kind][0] for kind in KINDS})
        self.inputs = {kind: kinds[kind][1] for kind in KINDS}
        self.adapters = lora.Adapters(self)
        for name in names:
            naive.fill(self)
            self.adapters.add(name)

    def alone(self, name: str) -> Inputs:
        """What each layer computes with one adapter."""
        self.adapters.switch(name)
        return self.outputs()

    def outputs(self) -> Inputs:
        return {kind: self[kind](x) for kind, x in self.inputs.items()}


def rank_one(layer: Any) -> tuple[Tensor, Tensor]:
    """Factors of rank 1, of which those of the layer have a multiple."""
    a, b = layer.lora_A, layer.lora_B
    return torch.randn(a.shape[0] // layer.r, a.shape[1]), torch.randn(
        b.shape[0], b.shape[1] // layer.r
    )


# -- switching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_switching_is_in_place_and_exact(training: bool) -> None:
    model = Layers()
    model.train(training)
    expected = {}
    for name in ("first", "second"):
        naive.fill(model).train(training)
        model.adapters.add(name)
        with torch.no_grad():
            expected[name] = model.outputs()
    assert list(model.adapters) == ["first", "second"]
    pointers = {name: (p, p.data_ptr()) for name, p in model.named_parameters()}
    for name in ("first", "second", "first"):
        with torch.no_grad():
            torch.testing.assert_close(model.alone(name), expected[name])
    assert {name: (p, p.data_ptr()) for name, p in model.named_parameters()} == pointers


def test_layers_without_an_update_are_plain_and_lower_ranks_are_filled_up() -> None:
    model = Layers("full")
    linear: Any = model["linear"]
    a, b = rank_one(linear)
    part = lora.Adapter({"linear": (a, b)}, {"linear": 7.0})
    model.adapters.add("part", part)
    found = model.alone("part")
    x = model.inputs["linear"]
    plain = linear._plain(x, linear.weight)
    torch.testing.assert_close(found["linear"], plain + 7 * x @ a.T.double() @ b.T.double())
    assert not linear.lora_B[:, 1].any()
    for kind in KINDS[1:]:
        layer: Any = model[kind]
        assert torch.equal(found[kind], layer._plain(model.inputs[kind], layer.weight))
    with model.adapters.rows(["part"] * 3):
        torch.testing.assert_close(model.outputs(), found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "merged"])
def test_a_lower_rank_of_every_kind(kind: str) -> None:
    model = Layers("full")
    layer: Any = model[kind]
    low = copy.deepcopy(layer)
    a, b = rank_one(layer)
    low.lora_A.data.zero_()
    low.lora_B.data.zero_()
    low.put(a, b, scaling=3.0)
    expected = low(model.inputs[kind])
    model.adapters.add("low", lora.Adapter({kind: (a, b)}, {kind: 3.0}))
    torch.testing.assert_close(model.alone("low")[kind], expected)
    with model.adapters.rows(["low"] * 3):
        torch.testing.assert_close(model[kind](model.inputs[kind]), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "merged"])
def test_nothing_of_a_diverged_adapter_stays_behind_one_of_lower_rank(kind: str) -> None:
    model = Layers("full")
    for parameter in model.adapters.parameters("full").values():
        parameter.data.fill_(torch.nan)
    model.adapters.add("low", lora.Adapter({kind: rank_one(model[kind])}, {kind: 3.0}))
    model.adapters.switch("full")
    model.adapters.switch("low")
    for one, inputs in model.inputs.items():
        assert model[one](inputs).isfinite().all()


def test_a_rank_that_is_too_high_is_refused_and_nothing_is_changed() -> None:
    model = Layers("first", "second")
    model.adapters.combine("sum", {"first": 1.0, "second": 1.0})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        lora.AdapterError, match=r"'sum' has a higher rank .* with r=4 instead of 2"
    ):
        model.adapters.switch("sum")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_refused() -> None:
    model = Layers("first")
    with pytest.raises(lora.AdapterError, match="an adapter 'first' already"):
        model.adapters.add("first")
    with pytest.raises(lora.AdapterError, match="no adapter 'third'; there are: first"):
        model.adapters.switch("third")
    with (
        pytest.raises(lora.AdapterError, match="no adapter 'third'"),
        model.adapters.rows(["first", "third"]),
    ):
        pass
    other = lora.Adapter({"nowhere": (torch.ones(1, 6), torch.ones(4, 1))}, {"nowhere": 1.0})
    with pytest.raises(lora.AdapterError, match="nowhere: the model has no LoRA layer there"):
        model.adapters.add("other", other)
    assert list(model.adapters) == ["first"]
    with (
        pytest.raises(ValueError, match="a batch of 3 rows, but adapters for 2"),
        model.adapters.rows(["first", "first"]),
    ):
        model.outputs()
    assert model["linear"].rows is None
    with pytest.raises(lora.AdapterError, match="0 is a DoRA layer"):
        lora.Adapters(nn.Sequential(lora.DoraLinear(4, 4, r=1)))


# -- combining -------------------------------------------------------------------------------------


@every_kind
def test_a_combination_is_the_weighted_sum_of_the_updates(kind: str) -> None:
    model = Layers("first", "second")
    layer: Any = model[kind]
    deltas = []
    for name in ("first", "second"):
        model.adapters.switch(name)
        deltas.append(naive.delta(layer, layer.lora_A, layer.lora_B))
    model.adapters.combine("both", {"first": 0.7, "second": -2.0})
    held = model.adapters.parameters("both")
    a, b = held[f"{kind}.lora_A"], held[f"{kind}.lora_B"]
    found = layer.product(a, b)
    expected = 0.7 * deltas[0] - 2 * deltas[1]
    torch.testing.assert_close(found, expected.T if kind == "transposed" else expected)


def test_a_combination_is_switched_to_where_there_is_room() -> None:
    model: Any = nn.Sequential(lora.Linear(6, 4, r=4).double())
    adapters, x = lora.Adapters(model), torch.randn(3, 6).double()
    plain, outputs = model(x), []
    for name in ("first", "second"):
        factors = torch.randn(2, 6), torch.randn(4, 2)
        adapters.add(name, lora.Adapter({"0": factors}, {"0": 3.0}))
        adapters.switch(name)
        outputs.append(model(x) - plain)
    adapters.combine("both", {"first": 0.5, "second": 2.0})
    adapters.switch("both")
    torch.testing.assert_close(model(x) - plain, 0.5 * outputs[0] + 2 * outputs[1])


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["aaa", "aab", "bab", "bca", "ccb"])
@pytest.mark.parametrize("training", [True, False])
def test_each_row_goes_through_its_own_adapter(names: str, training: bool) -> None:
    model = Layers("a", "b", "c")
    alone = {name: model.alone(name) for name in "abc"}
    with model.train(training).adapters.rows(names):
        found = model.outputs()
    for kind, output in found.items():
        for row, name in enumerate(names):
            torch.testing.assert_close(output[row], alone[name][kind][row])


@every_kind
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_training_in_one_batch_is_training_each_alone(kind: str, optimiser: Any) -> None:
    model = Layers("a", "b")
    layer, x, names = model[kind], model.inputs[kind], "bab"
    apart = copy.deepcopy(model)
    together = optimiser([p for name in "ab" for p in trained(model, name, kind)], lr=0.01)
    for _ in range(3):
        with model.adapters.rows(names):
            layer(x).square().sum().backward()
        together.step()
        together.zero_grad()
    for name in "ab":
        rows = [row for row, one in enumerate(names) if one == name]
        apart.adapters.switch(name)
        window: Any = apart[kind]
        steps = optimiser([window.lora_A, window.lora_B], lr=0.01)
        for _ in range(3):
            window(x[rows]).square().sum().backward()
            steps.step()
            steps.zero_grad()
        found = naive.delta(window, *trained(model, name, kind))
        torch.testing.assert_close(found, naive.delta(window, window.lora_A, window.lora_B))
    assert model[kind].lora_A.grad is None


@every_kind
def test_what_is_no_number_in_one_adapter_does_not_reach_the_rows_of_another(kind: str) -> None:
    model = Layers("good", "bad")
    layer, x = model[kind], model.inputs[kind]
    with model.adapters.rows(["good", "bad", "good"]):
        healthy = layer(x)
        with torch.no_grad():
            for parameter in model.adapters.parameters("bad").values():
                parameter.fill_(float("nan"))
        found = layer(x)
    assert torch.equal(found[[0, 2]], healthy[[0, 2]])
    assert not found[1].isfinite().any()
    found[[0, 2]].sum().backward()
    assert all(p.grad.isfinite().all() for p in trained(model, "good", kind))


def trained(model: Layers, name: str, kind: str) -> list[Any]:
    held = model.adapters.parameters(name)
    return [held[f"{kind}.lora_A"], held[f"{kind}.lora_B"]]


def test_one_row_that_is_the_same_for_all_is_repeated() -> None:
    """As the numbers of positions, of which transformers look up one row."""
    model: Any = nn.Sequential(lora.Embedding(8, 4, r=2))
    adapters = lora.Adapters(model)
    for name in "ab":
        naive.fill(model)
        adapters.add(name)
    with adapters.rows("bab"):
        found = model(torch.arange(5)[None])
        assert torch.equal(found, model(torch.arange(5).repeat(3, 1)))


def test_rows_end_with_their_context_and_may_be_nested() -> None:
    model = Layers("a", "b")
    layer, x = model["linear"], model.inputs["linear"]
    model.adapters.switch("a")
    expected = layer(x)
    with model.adapters.rows("bbb"):
        outer = layer(x)
        with model.adapters.rows("aaa"):
            torch.testing.assert_close(layer(x), expected)
        assert torch.equal(layer(x), outer)
    assert torch.equal(layer(x), expected)


def test_rows_are_read_from_the_plain_weight_also_while_merged() -> None:
    model = Layers("a", "b")
    expected = model.alone("b")
    model.adapters.switch("a")
    model.eval()
    with torch.no_grad(), model.adapters.rows("bbb"):
        torch.testing.assert_close(model.outputs(), expected)


def test_adapters_are_apart_and_in_the_layers_own_type() -> None:
    model: Any = nn.Sequential(lora.Linear(6, 4, r=2))
    factors = torch.randn(2, 6).bfloat16(), torch.randn(4, 2).bfloat16()
    adapters = lora.Adapters(model)
    adapters.add("given", lora.Adapter({"0": factors}, {"0": 1.0}))
    adapters.add("held")
    held = {name: adapters.parameters(name) for name in adapters}
    assert {p.dtype for p in held["given"].values()} == {torch.float32}
    assert list(held["held"]) == ["0.lora_A", "0.lora_B"]
    with torch.no_grad():
        held["held"]["0.lora_A"].zero_()
        held["given"]["0.lora_A"].zero_()
    assert model[0].lora_A.any()
    assert factors[0].any()
