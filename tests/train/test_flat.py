"""Flat batches equal padded ones, in outputs and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import logits_of
from tiny import save
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from lora_exp import models
from lora_exp.models import Backbone
from lora_exp.runs.config import ModelConfig
from lora_exp.train import flat, layout
from lora_exp.train.batches import Batch

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


@pytest.fixture(params=["short", "long"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which attention works on a CPU."""
    if request.param == "long":
        monkeypatch.setattr(flat, "SHORT", 0)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize(
    "architecture",
    ["bert", "roberta", "gpt2", "deberta-v2", "llama", "mistral", "qwen2", "qwen3", "phi3"],
)
def test_a_batch_equals_its_sequences_alone(architecture: str, tmp_path: Path) -> None:
    folder = save(tmp_path, architecture)
    given = batch(LENGTHS, types=architecture in ("bert", "deberta-v2"))
    expected = one_by_one(folder, given)
    backbone = ours(folder)
    torch.testing.assert_close(logits_of(backbone, given), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_gradients_equal_those_of_a_padded_batch(architecture: str, tmp_path: Path) -> None:
    from lora_exp.train import padded

    folder = save(tmp_path, architecture)
    given = batch(LENGTHS, types=False)
    gradients = []
    for kind in ("padded", "flat"):
        backbone = ours(folder)
        if kind == "flat":
            logits = logits_of(backbone, given)
        else:
            logits = padded.logits(backbone.model, given)
        F.cross_entropy(logits, given.labels).backward()
        gradients.append({n: p.grad for n, p in backbone.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    cut=st.integers(0, 20),
    apart=st.booleans(),
)
def test_a_layout_holds_every_token_once(lengths: list[int], cut: int, apart: bool) -> None:
    cut = min(cut, len(lengths))
    where = layout.Layout(lengths, "cpu", [cut, len(lengths) - cut], apart)
    tokens = sum(lengths)
    assert torch.equal(where.arranged.slots[where.arranged.tokens], torch.arange(tokens))
    real = torch.ones(len(where.arranged.slots), dtype=torch.bool)
    if where.arranged.real is not None:
        real = where.arranged.real.flatten()
    assert int(real.sum()) == tokens
    assert where.positions[where.first].tolist() == [0] * len(lengths)
    assert (where.positions[where.last] + 1).tolist() == lengths
    assert where.arranged.order[where.arranged.back].tolist() == list(range(len(lengths)))
    covered = 0
    for group in where.arranged.groups:
        members = where.arranged.order[group.sequences]
        assert group.sequences.start == covered
        covered += len(members)
        span = real[group.slots].view(len(members), group.length)
        assert span.sum(1).tolist() == [lengths[i] for i in members]
        assert int(span.sum()) >= layout.SHORTEST * span.numel()
        if apart:
            assert all((int(i) >= cut) == (group.run == 1) for i in members)
        rows = where.arranged.slots[group.slots].view(len(members), group.length)
        assert (rows >= where.first[members][:, None]).all()
        assert (rows <= where.last[members][:, None]).all()
    assert covered == len(lengths)


def test_bf16_keeps_what_is_trained_in_fp32_and_stays_close(tmp_path: Path) -> None:
    from lora_exp import methods
    from lora_exp.runs.config import Config
    from lora_exp.train.workplace import set_precision

    folder = save(tmp_path, "bert")
    given = batch(LENGTHS, types=True)
    outputs = []
    for precision in ("fp32", "bf16"):
        backbone = ours(folder)
        methods.attach(backbone, Config(model=ModelConfig(str(folder))))
        torch.nn.init.normal_(backbone.model.classifier.weight)  # type: ignore[union-attr]
        set_precision(backbone, precision)
        logits = logits_of(backbone, given, precision).float()
        F.cross_entropy(logits, given.labels).backward()
        outputs.append(logits.detach())
    kinds = {(p.dtype, p.requires_grad, p.ndim > 1) for p in backbone.model.parameters()}
    assert (torch.bfloat16, False, True) in kinds
    assert all(dtype == torch.float32 for dtype, trained, _ in kinds if trained)
    torch.testing.assert_close(outputs[0], outputs[1], atol=0.1, rtol=0.1)
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("one_each", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("in_front", [[], [3, 3], [2, 5]])
def test_the_kernel_of_gpus_is_asked_for_the_same(
    in_front: list[int], causal: bool, one_each: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments, by its documentation, mean what the groups compute. Where there are more keys
    than queries, the last query sees the last key (FlashAttention 2)."""
    from torch import nn
    from torch.nn.attention import varlen

    def by_hand(q, k, v, ends_q, ends_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert ends_q.dtype == ends_k.dtype == torch.int32
        assert window_size in ((-1, -1), (-1, 0))
        outputs = []
        for i in range(len(ends_q) - 1):
            queries, span = slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
            assert queries.stop - queries.start <= max_q
            assert span.stop - span.start <= max_k
            heads = [x.transpose(0, 1) for x in (q[queries], k[span], v[span])]
            ahead = heads[1].shape[1] - heads[0].shape[1]
            seen = torch.ones(heads[0].shape[1], heads[1].shape[1], dtype=torch.bool)
            result = F.scaled_dot_product_attention(
                *heads,
                attn_mask=seen.tril(ahead) if window_size == (-1, 0) else None,
                scale=scale,
                enable_gqa=enable_gqa,
            )
            outputs.append(result.transpose(0, 1))
        return torch.cat(outputs)

    monkeypatch.setattr(varlen, "varlen_attn", by_hand)
    where = layout.Layout(LENGTHS, "cpu", [3, 5])
    generator = torch.Generator().manual_seed(1)
    heads = {"query": 4, "key": 2, "value": 2}
    query, key, value = (
        torch.randn(1, number, sum(LENGTHS), 8, generator=generator) for number in heads.values()
    )
    if one_each:
        query = query.index_select(2, where.last)
    module = nn.Module()
    module.is_causal = causal  # type: ignore[assignment]
    front = None
    if in_front:
        pairs = [torch.randn(2, 2, rows, 8, generator=generator) for rows in in_front]
        front = [(key, value) for key, value in pairs]
        where.fronts = {module: front}
    expected, _ = flat.attention(module, query, key, value, None, flat_layout=where, scaling=0.3)
    q, k, v = (rows[0].transpose(0, 1) for rows in (query, key, value))
    asked = flat._Asked(where, one_each, causal and not one_each, 0.3, 0.0, 0, front)
    torch.testing.assert_close(flat._any_length(q, k, v, asked)[None], expected)
