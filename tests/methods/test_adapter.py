"""Adapters: how many parameters, where they stand, how they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attaching import attached, batch, config_of, move, on_paper, write
from passes import logits_of
from safetensors.torch import load_file
from tiny import save
from torch.nn import functional as F
from transformers import GPT2Config, PreTrainedConfig, RobertaConfig

from lora_exp import methods
from lora_exp.errors import UserError
from lora_exp.models import Backbone
from lora_exp.runs.config import ModelConfig
from lora_exp.train import padded
from lora_exp.train.workplace import loaded

MEDIUM = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
LARGE = GPT2Config(n_embd=1280, n_layer=36, n_head=20)
ROBERTA_LARGE = RobertaConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
KINDS = ["houlsby", "pfeiffer", "lin"]
ARCHITECTURES = ["bert", "roberta", "deberta-v2", "gpt2", "llama", "phi3"]


@pytest.mark.parametrize(
    ("architecture", "values", "size", "expected"),
    [
        # Hu et al. 2021, Table 3: 0.37M, 11.09M, 0.88M, 23.00M.
        (MEDIUM, {"kind": "lin", "parameters": 370_000}, 6, 368_784),
        (MEDIUM, {"kind": "lin", "parameters": 11_090_000}, 224, 11_089_152),
        (LARGE, {"kind": "lin", "parameters": 880_000}, 8, 875_808),
        (LARGE, {"kind": "lin", "parameters": 23_000_000}, 248, 23_002_848),
        # 11.09M again; by this count it is 11.06M.
        (MEDIUM, {"kind": "houlsby", "parameters": 11_090_000}, 112, 11_064_576),
        # Table 2: 0.8M, 6.0M, 0.8M, 3.0M.
        (ROBERTA_LARGE, {"kind": "houlsby", "size": 8}, 8, 835_968),
        (ROBERTA_LARGE, {"kind": "houlsby", "size": 64}, 64, 6_343_680),
        (ROBERTA_LARGE, {"kind": "pfeiffer", "size": 16}, 16, 811_392),
        (ROBERTA_LARGE, {"kind": "pfeiffer", "size": 64}, 64, 3_171_840),
    ],
)
def test_published_numbers_of_trained_parameters(
    architecture: PreTrainedConfig, values: dict[str, Any], size: int, expected: int
) -> None:
    writes = architecture.model_type == "gpt2"
    backbone = on_paper(architecture, config_of("any", "adapter", **values), writes=writes)
    assert methods.parameter_counts(backbone, "adapter")["adapter"] == expected
    assert {m.out_features for n, m in backbone.model.named_modules() if n.endswith("down")} == {
        size
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_alone_learn_and_begin_as_almost_nothing(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, architecture, initializer_range=0.2)
    given = batch(types=architecture in ("bert", "deberta-v2"))
    plain, backbone = loaded(ModelConfig(str(folder)), 2), attached(folder, "adapter", kind=kind)
    same_head(plain, backbone)
    expected, found = logits_of(plain, given), logits_of(backbone, given)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=0)
    for name, parameter in methods.trained(backbone.model).items():
        parameter.data.mul_(30 if name not in backbone.head else 1)
    moved = logits_of(backbone, given)
    assert (moved - expected).abs().max() > 10 * (found - expected).abs().max()
    F.cross_entropy(logits_of(backbone, given), given.labels).backward()
    for name, parameter in backbone.model.named_parameters():
        if ".adapter." in name or name in backbone.head:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    number = sum(name.endswith(".adapter") for name, _ in backbone.model.named_modules())
    assert number == (4 if kind == "houlsby" else 2)


def same_head(plain: Backbone, backbone: Backbone) -> None:
    plain.model.eval()
    own = dict(backbone.model.named_parameters())
    for name, parameter in plain.model.named_parameters():
        if name in plain.head:
            parameter.data.copy_(own[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_flat_batches_equal_padded_ones(architecture: str, kind: str, tmp_path: Path) -> None:
    from lora_exp import models

    folder, given = save(tmp_path, architecture), batch()
    backbone = attached(folder, "adapter", kind=kind)
    move(backbone)
    usual = models.load(ModelConfig(str(folder)), 2)  # with attention as transformers has it
    methods.attach(usual, config_of(folder, "adapter", kind=kind))
    move(usual)
    usual.model.eval()
    torch.testing.assert_close(
        logits_of(backbone, given), padded.logits(usual.model, given), atol=1e-5, rtol=1e-4
    )


def test_where_adapters_stand_in_bert(tiny: Path) -> None:
    """By hand, as microsoft/LoRA computes it."""
    hidden, given = torch.randn(2, 3, 64), torch.randn(2, 3, 32)
    outputs = {}
    for kind in ("houlsby", "pfeiffer"):
        backbone = attached(tiny, "adapter", kind=kind, size=4)
        move(backbone)
        output: Any = backbone.model.get_submodule("bert.encoder.layer.0.output")
        outputs[kind] = output, output(hidden, given)
    for kind, (output, found) in outputs.items():
        own = F.linear(hidden, output.dense.weight, output.dense.bias)
        read = output.LayerNorm(own + given) if kind == "pfeiffer" else own
        down, up = output.adapter.down, output.adapter.up
        bent = (F.relu if kind == "pfeiffer" else F.silu)(F.linear(read, down.weight, down.bias))
        expected = output.LayerNorm(F.linear(bent, up.weight, up.bias) + own + given)
        torch.testing.assert_close(found, expected)


def test_the_beginning_depends_on_seed_and_name_alone(tiny: Path) -> None:
    def down(seed: int, kind: str) -> torch.Tensor:
        backbone = attached(tiny, "adapter", seed, kind=kind)
        return backbone.model.get_parameter("bert.encoder.layer.1.output.adapter.down.weight")

    assert torch.equal(down(1, "houlsby"), down(1, "pfeiffer"))
    assert not torch.equal(down(1, "houlsby"), down(2, "houlsby"))
    assert 0 < down(1, "houlsby").abs().max() <= 0.02


def test_the_adapter_is_every_trained_tensor_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    backbone = attached(tiny, "adapter", kind="lin")
    move(backbone)
    folder = write(backbone, config_of(tiny, "adapter", kind="lin"), tmp_path / "adapter")
    saved, trained = (
        load_file(folder / "adapter_model.safetensors"),
        methods.trained(backbone.model),
    )
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], trained[name]) for name in saved)


def test_what_cannot_be(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"adapter\.parameters=10: 4 adapters of one unit have 388"):
        attached(tiny, "adapter", parameters=10)
