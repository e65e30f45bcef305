"""Layers within what else torch does: compiling, autocast, checkpointing, inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, BertModel

from lora_exp import lora
from lora_exp.lora import DoraLinear

KINDS = list(naive.every_kind())
every_kind = pytest.mark.parametrize("kind", KINDS)


class Model(nn.Module):
    """A layer of each kind, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = lora.Embedding(9, 8, r=2)
        self.linear = lora.Linear(8, 8, r=2, fan_in_fan_out=True)
        self.fused = lora.MergedLinear(8, 12, r=[2, 1, 0], enable_lora=[True] * 3)
        self.convolution = lora.Conv1d(12, 8, 3, r=1, padding="same")

    def forward(self, numbers: Tensor) -> Tensor:
        hidden = self.fused(torch.tanh(self.linear(self.embedding(numbers))))
        return self.convolution(hidden.transpose(1, 2))


NUMBERS = torch.tensor([[0, 1, 2, 8], [5, 5, 1, 0]])


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    held = {name: p for name, p in model.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(output.square().sum(), list(held.values()), allow_unused=True)
    return {n: s for n, s in zip(held, slopes, strict=True) if s is not None}


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    """A backend that counts how often something is compiled."""
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


# -- torch.compile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_compiled_whole_and_only_once(counter: CompileCounterWithBackend, training: bool) -> None:
    model = naive.fill(Model().double()).train(training)
    adapters = lora.Adapters(model)
    adapters.add("first")
    lora.initialise(model, seed=1)
    adapters.add("second")
    compiled: Any = torch.compile(model, fullgraph=True, backend=counter)
    for name in ("first", "second", "first"):
        adapters.switch(name)
        expected, found = model(NUMBERS), compiled(NUMBERS)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(model, found), gradients(model, expected))
        with torch.no_grad():
            torch.testing.assert_close(compiled(NUMBERS), expected)
        model.train(not training)
        model.train(training)
    assert counter.frame_count == 2  # with gradients, and without


def test_dora_and_rows_compile_whole(counter: CompileCounterWithBackend) -> None:
    layer, x = naive.every_kind(torch.float64)["dora"]
    compiled: Any = torch.compile(layer, fullgraph=True, backend=counter)
    torch.testing.assert_close(gradients(layer, compiled(x)), gradients(layer, layer(x)))
    with torch.no_grad():
        layer.eval()
        torch.testing.assert_close(compiled(x), layer(x))

    model = naive.fill(Model().double())
    adapters = lora.Adapters(model)
    adapters.add("first")
    adapters.add("second")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with adapters.rows(["second", "first"]):
        torch.testing.assert_close(compiled(NUMBERS), model(NUMBERS))


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_export(kind: str, training: bool) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    exported = torch.export.export(layer.train(training), (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


# -- precision -------------------------------------------------------------------------------------


@every_kind
def test_autocast(kind: str) -> None:
    layer, x = naive.every_kind()[kind]
    exact = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        assert found.dtype == (torch.float32 if kind == "embedding" else torch.bfloat16)
        layer.eval()
        with torch.no_grad():
            merged = layer(x)
    layer.train()
    assert merged.dtype == found.dtype
    scale = exact.abs().max().item()
    torch.testing.assert_close(found.float(), exact, atol=0.02 * scale, rtol=0)
    torch.testing.assert_close(merged.float(), exact, atol=0.02 * scale, rtol=0)
    slopes = gradients(layer, found)
    assert {"lora_A", "lora_B"} <= set(slopes)
    assert all(slope.dtype == torch.float32 for slope in slopes.values())


@every_kind
def test_a_bfloat16_backbone_with_factors_in_float32(kind: str) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    exact = layer(x).detach()
    for name, parameter in layer.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if "lora_" in name else torch.bfloat16)
    x = x.bfloat16() if x.is_floating_point() else x
    found = layer(x)
    assert found.dtype == torch.bfloat16
    scale = exact.abs().max().item()
    torch.testing.assert_close(found.double(), exact, atol=0.03 * scale, rtol=0)
    assert all(slope.dtype == torch.float32 for slope in (layer.lora_A, layer.lora_B))
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x).double(), exact, atol=0.03 * scale, rtol=0)


def test_wrapping_gives_factors_of_float32_or_wider() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        layer = lora.Linear.wrap(nn.Linear(4, 4, dtype=dtype), r=2)
        assert layer.lora_A.dtype == expected
        assert lora.Linear(4, 4, r=2, dtype=dtype).lora_A.dtype == dtype


# -- gradients kept, computed anew, or not wanted --------------------------------------------------


@every_kind
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_checkpointing(kind: str, reentrant: bool, training: bool) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    layer.train(training)
    # The reentrant one needs an input with gradient.
    start = torch.ones((), dtype=torch.float64, requires_grad=True)

    def run(scale: Tensor) -> Tensor:
        return layer(x * scale if x.is_floating_point() else x) * scale

    found = checkpoint(run, start, use_reentrant=reentrant)
    assert isinstance(found, Tensor)
    found.square().sum().backward()
    slopes = {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None}
    expected = gradients(layer, run(start))
    torch.testing.assert_close(slopes, {name: expected[name] for name in slopes})
    assert {"lora_A", "lora_B"} <= set(slopes)


@every_kind
def test_eval_within_inference_mode_then_training(kind: str) -> None:
    layer, x = naive.every_kind(torch.float64)[kind]
    expected = layer(x)
    with torch.inference_mode():
        layer.eval()
        torch.testing.assert_close(layer(x), expected.detach())
    gradients(layer, layer(x))  # merged in inference mode, and now with gradients
    layer.train()
    torch.testing.assert_close(gradients(layer, layer(x)), gradients(layer, expected))
    with torch.inference_mode():  # also where the layer was made there
        made, x = naive.every_kind(torch.float64)[kind]
        torch.testing.assert_close(made.eval()(x), made.train()(x))


# -- who reads .weight -----------------------------------------------------------------------------


@pytest.mark.parametrize("merge_weights", [True, False])
def test_torchs_own_transformer_reads_the_update_in_inference(merge_weights: bool) -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2
    )
    lora.place(encoder, ["linear1", "linear2"], r=2, alpha=4, merge_weights=merge_weights)
    naive.fill(encoder)
    x, padded = torch.randn(2, 3, 8), torch.tensor([[False] * 3, [False, False, True]])
    for layer, options in ((encoder.layers[0], {}), (encoder, {"src_key_padding_mask": padded})):
        expected = layer.train()(x, **options)
        layer.eval()
        with torch.no_grad():
            torch.testing.assert_close(layer(x, **options)[0], expected[0])


def test_a_functional_use_of_the_weight_is_that_of_the_layer() -> None:
    layer, x = naive.every_kind(torch.float64)["linear"]
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(F.linear(x, layer.eval().weight, layer.bias), expected)


# -- the meta device -------------------------------------------------------------------------------


class OwnBert(BertModel):
    """A model of transformers whose code has LoRA layers, as loralib's users write it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for block in self.encoder.layer:
            attention: Any = block.attention
            attention.self.query = lora.Linear(16, 16, r=2)
            attention.self.value = DoraLinear.wrap(nn.Linear(16, 16), r=2)
        self.embeddings.word_embeddings = lora.Embedding(9, 16, r=2, padding_idx=0)


def test_from_pretrained_starts_factors_that_the_file_lacks_and_keeps_those_it_has(
    tmp_path: Path,
) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    config: Any = AutoConfig.for_model("bert", **sizes, num_hidden_layers=2)
    plain: Any = BertModel(config).eval()
    plain.save_pretrained(tmp_path / "plain")
    started: Any = OwnBert.from_pretrained(tmp_path / "plain")
    expected = plain(NUMBERS).last_hidden_state
    torch.testing.assert_close(started(NUMBERS).last_hidden_state, expected)
    for name, layer in lora.lora_layers(started):
        random = layer.lora_A if layer.b_starts_at_zero else layer.lora_B
        assert random.std() > 0.01, name
    naive.fill(started).eval().save_pretrained(tmp_path / "trained")
    again: Any = OwnBert.from_pretrained(tmp_path / "trained")
    for name, value in started.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_values_given_after_the_meta_device_stay() -> None:
    with torch.device("meta"):
        model = Model()
    given = naive.fill(Model()).state_dict()
    model.to_empty(device="cpu").load_state_dict(given)
    for name, value in model.eval().train().state_dict().items():
        assert torch.equal(value, given[name]), name
