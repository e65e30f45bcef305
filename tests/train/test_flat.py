"""Flat batches equal padded ones, in outputs and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from lora_exp import models
from lora_exp.models import Backbone
from lora_exp.runs.config import ModelConfig
from lora_exp.train import flat
from lora_exp.train.batches import Batch
from lora_exp.train.job import forward_of

LENGTHS = [5, 17, 9, 3, 16, 30, 5, 1]


def batch(lengths: list[int], types: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 40, (sum(lengths),), generator=generator)
    some = torch.randint(0, 2, (sum(lengths),), generator=generator) if types else None
    return Batch(ids, some, lengths, torch.arange(len(lengths)) % 2)


def one_by_one(folder: Path, given: Batch) -> torch.Tensor:
    """What transformers gives for each sequence alone: no padding, no layout."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "score", "pooler")):
            torch.nn.init.normal_(parameter)
    model.eval()
    model.config.pad_token_id = 0
    rows = []
    for number, ids in enumerate(given.input_ids.split(given.lengths)):
        inputs = {"input_ids": ids[None]}
        if given.token_types is not None:
            inputs["token_type_ids"] = given.token_types.split(given.lengths)[number][None]
        rows.append(model(**inputs).logits[0])
    return torch.stack(rows)


def ours(folder: Path) -> Backbone:
    backbone = models.load(ModelConfig(str(folder)), outputs=2)
    torch.manual_seed(0)
    for name, parameter in backbone.model.named_parameters():
        if name.startswith(("classifier", "score", "pooler")):
            torch.nn.init.normal_(parameter)
    backbone.model.eval()
    return backbone


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "deberta-v2"])
def test_a_batch_equals_its_sequences_alone(architecture: str, tmp_path: Path) -> None:
    folder = save(tmp_path, architecture)
    given = batch(LENGTHS, types=architecture in ("bert", "deberta-v2"))
    expected = one_by_one(folder, given)
    backbone = ours(folder)
    torch.testing.assert_close(forward_of(backbone, "fp32")(given), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_gradients_equal_those_of_a_padded_batch(architecture: str, tmp_path: Path) -> None:
    from lora_exp.train import padded

    folder = save(tmp_path, architecture)
    given = batch(LENGTHS, types=False)
    gradients = []
    for kind in ("padded", "flat"):
        backbone = ours(folder)
        if kind == "flat":
            logits = forward_of(backbone, "fp32")(given)
        else:
            logits = padded.logits(backbone.model, given)
        F.cross_entropy(logits, given.labels).backward()
        gradients.append({n: p.grad for n, p in backbone.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_a_layout_holds_every_token_once(lengths: list[int]) -> None:
    where = flat.layout(lengths, "cpu")
    tokens = sum(lengths)
    assert torch.equal(where.slots[where.tokens], torch.arange(tokens))
    real = torch.ones(len(where.slots), dtype=torch.bool)
    if where.real is not None:
        real = where.real.flatten()
    assert int(real.sum()) == tokens
    assert sum(group.sequences for group in where.groups) == len(lengths)
    assert where.positions[where.first].tolist() == [0] * len(lengths)
    assert (where.positions[where.last] + 1).tolist() == lengths
    for group in where.groups:
        width = group.sequences * group.length
        assert int(real[group.start : group.start + width].sum()) >= flat.SHORTEST * width


def test_bf16_keeps_what_is_trained_in_fp32_and_stays_close(tmp_path: Path) -> None:
    from lora_exp import methods
    from lora_exp.runs.config import Config
    from lora_exp.train.job import set_precision

    folder = save(tmp_path, "bert")
    given = batch(LENGTHS, types=True)
    outputs = []
    for precision in ("fp32", "bf16"):
        backbone = ours(folder)
        methods.attach(backbone, Config(model=ModelConfig(str(folder))))
        torch.nn.init.normal_(backbone.model.classifier.weight)  # type: ignore[union-attr]
        set_precision(backbone, precision)
        logits = forward_of(backbone, precision)(given).float()
        F.cross_entropy(logits, given.labels).backward()
        outputs.append(logits.detach())
    kinds = {(p.dtype, p.requires_grad, p.ndim > 1) for p in backbone.model.parameters()}
    assert (torch.bfloat16, False, True) in kinds
    assert all(dtype == torch.float32 for dtype, trained, _ in kinds if trained)
    torch.testing.assert_close(outputs[0], outputs[1], atol=0.1, rtol=0.1)
    assert not torch.equal(outputs[0], outputs[1])
