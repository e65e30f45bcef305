"""Prefixes and prompts: as PEFT computes them, in flat batches, in padded ones and with a cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attaching import attached, batch, config_of, move, on_paper, write
from passes import logits_of
from peft import PeftModel
from tiny import save, save_writer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config

from lora_exp import init_from, methods
from lora_exp.decoding import Decoding, decode
from lora_exp.errors import UserError
from lora_exp.models import Backbone
from lora_exp.runs.config import ModelConfig
from lora_exp.train.batches import Batch
from lora_exp.train.forward import Piece, forward
from lora_exp.train.workplace import loaded, set_precision

METHODS = ["prefix", "prompt"]
SHORT = {"prefix": {"length": 3, "hidden": 8}, "prompt": {"length": 3}}
FLAT = ["bert", "roberta", "gpt2", "llama", "qwen3", "phi3"]


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        # Li and Liang's length for E2E; Hu et al. 2021 write 0.35M, a thousandth of the model.
        ("prefix", {"length": 5}, 2 * 24 * 1024 * 5),
        ("prefix", {"length": 5, "hidden": None}, 245_760),
        ("prompt", {"length": 20}, 20_480),
    ],
)
def test_only_what_is_kept_is_counted(method: str, values: dict[str, Any], expected: int) -> None:
    medium = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    backbone = on_paper(medium, config_of("gpt2-medium", method, **values), writes=True)
    counts = methods.parameter_counts(backbone, method)
    assert counts == {method: expected, "head": 0, "total": 354_823_168 + expected}


def peft(folder: Path, adapter: Path) -> Any:
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    base.config.pad_token_id = 0
    return PeftModel.from_pretrained(base, str(adapter)).eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", FLAT)
def test_peft_opens_it_with_equal_logits(architecture: str, method: str, tmp_path: Path) -> None:
    check_with_peft(architecture, method, tmp_path)


def test_peft_opens_a_prompt_of_deberta(tmp_path: Path) -> None:  # a prefix it has not for DeBERTa
    check_with_peft("deberta-v2", "prompt", tmp_path)


def check_with_peft(architecture: str, method: str, tmp_path: Path) -> None:
    folder, values = save(tmp_path / "model", architecture, initializer_range=0.2), SHORT[method]
    backbone = attached(folder, method, **values)
    move(backbone)
    adapter = write(backbone, config_of(folder, method, **values), tmp_path / "adapter")
    types = architecture in ("bert", "deberta-v2")
    given, theirs = batch(types=types), peft(folder, adapter)
    found = logits_of(backbone, given)
    parts = given.token_types.split(given.lengths) if given.token_types is not None else None
    for number, ids in enumerate(given.input_ids.split(given.lengths)):
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        if parts is not None:
            inputs["token_type_ids"] = parts[number][None]
        expected = theirs(**inputs).logits[0]
        torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", [*FLAT, "deberta-v2"])
def test_nothing_else_learns(architecture: str, method: str, tmp_path: Path) -> None:
    folder = save(tmp_path, architecture, initializer_range=0.2)
    backbone = attached(folder, method, **SHORT[method])
    given = batch()
    F.cross_entropy(logits_of(backbone, given), given.labels).backward()
    for name, parameter in backbone.model.named_parameters():
        if f".{method}." in name or name in backbone.head:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_flat_equals_padded_equals_with_a_cache(
    architecture: str, method: str, tmp_path: Path
) -> None:
    folder, given = save(tmp_path, architecture, initializer_range=0.2), batch([5, 9, 3])
    backbone = attached(folder, method, **SHORT[method])
    move(backbone)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    writer = Backbone(model, backbone.tokenizer, frozenset(), frozenset())
    methods.attach(writer, config_of(folder, method, **SHORT[method]))
    own = dict(backbone.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(own[name])
    rows = given.input_ids.split(given.lengths)
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), True, 0)
    mask = torch.arange(9) < torch.tensor(given.lengths)[:, None]
    padded = model.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    last = padded[torch.arange(3), torch.tensor(given.lengths) - 1]
    score: Any = backbone.model.get_submodule("score")
    torch.testing.assert_close(logits_of(backbone, given), score(last), atol=1e-5, rtol=1e-4)

    first = model(input_ids=ids[:, :4], use_cache=True)
    rest = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values)
    whole = model(input_ids=ids)
    torch.testing.assert_close(
        torch.cat([first.logits, rest.logits], 1), whole.logits, atol=1e-5, rtol=1e-4
    )


def test_deberta_sees_the_prefix_beside_what_it_saw(tmp_path: Path) -> None:
    folder = save(
        tmp_path,
        "deberta-v2",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        initializer_range=0.2,
    )
    given = batch(types=True)
    plain, backbone = loaded(ModelConfig(str(folder)), 2), attached(folder, "prefix", hidden=None)
    plain.model.eval()
    head = {n: p for n, p in backbone.model.named_parameters() if n in backbone.head}
    plain.model.load_state_dict(head, strict=False)
    expected = logits_of(plain, given)
    assert (logits_of(backbone, given) - expected).abs().max() > 1e-3
    together = logits_of(backbone, given)
    starts = [sum(given.lengths[:number]) for number in range(len(given.lengths))]
    for number, (start, length) in enumerate(zip(starts, given.lengths, strict=True)):
        span = slice(start, start + length)
        assert given.token_types is not None
        alone = Batch(given.input_ids[span], given.token_types[span], [length], given.labels[:1])
        torch.testing.assert_close(
            logits_of(backbone, alone)[0], together[number], atol=1e-5, rtol=1e-4
        )
    # Without any positions it is DeBERTa's own attention.
    prefix: Any = backbone.model.base_model.prefix
    prefix.made = lambda: [(torch.zeros(4, 0, 8), torch.zeros(4, 0, 8))] * 2
    torch.testing.assert_close(logits_of(backbone, given), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_beginning_depends_on_the_seed(method: str, tiny: Path) -> None:
    def kept(seed: int) -> torch.Tensor:
        return getattr(attached(tiny, method, seed).model.base_model, method).kept()

    assert torch.equal(kept(1), kept(1))
    assert not torch.equal(kept(1), kept(2))


@pytest.mark.parametrize("method", METHODS)
def test_room_for_positions_is_left(method: str, tiny: Path) -> None:
    assert attached(tiny, method, length=7).longest == attached(tiny, method, length=1).longest - 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_dropout_bf16_and_recomputation(architecture: str, method: str, tmp_path: Path) -> None:
    """What training turns on: it runs, and is a function of the stream alone."""
    folder, given = save(tmp_path, architecture), batch(types=architecture == "bert")
    backbone = attached(folder, method, **SHORT[method])
    set_precision(backbone, "bf16")
    backbone.model.train()
    found = []
    for again in (False, True):
        if again:
            backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        backbone.model.zero_grad()
        with forward([Piece(backbone, given, 5)], "bf16") as (logits,):
            F.cross_entropy(logits.float(), given.labels).backward()
        trained = methods.trained(backbone.model)
        found.append({name: p.grad for name, p in trained.items() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == trained.keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_holds_what_is_kept_and_the_head(
    method: str, tiny: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    backbone, config = attached(tiny, method), config_of(tiny, method)
    folder = write(backbone, config, tmp_path / "adapter")
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved.keys() == {"prompt_embeddings"} | {f"base_model.{n}" for n in backbone.head}
    counts = methods.parameter_counts(backbone, method)
    assert sum(tensor.numel() for tensor in saved.values()) == counts[method] + counts["head"]
    about = json.loads((folder / "adapter_config.json").read_text())
    assert about["peft_type"] == f"{method.upper()}_TUNING"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_peft_writes_the_same_text(architecture: str, method: str, tmp_path: Path) -> None:
    words = ["the cats near the river sleep .", "a dog that the boys like runs ."]
    folder = save_writer(tmp_path / "model", words, architecture, initializer_range=0.2)
    backbone, config = loaded(ModelConfig(str(folder)), None), config_of(folder, method)
    setattr(config, method, replace(getattr(config, method), **SHORT[method]))
    methods.attach(backbone, config)
    move(backbone, 0.3)
    model: Any = backbone.model.eval()
    model.set_attn_implementation("sdpa")
    adapter = write(backbone, config, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter))
    prompts = [[5, 9, 4, 12], [7, 6], [11, 4, 4, 8, 10, 5]]
    options = Decoding(beam_size=1, max_new_tokens=7, min_length=7, no_repeat_ngram=0, eos_ids=(0,))
    outputs = decode(model, prompts, options, batch_size=3)
    for prompt, found in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=7,
            min_new_tokens=7,
        )
        assert found == expected[0, len(prompt) :].tolist()
    assert len(set(map(tuple, outputs))) > 1


@pytest.mark.parametrize("method", METHODS)
def test_what_stands_in_front_is_made_once_for_a_batch_of_texts(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_writer(tmp_path, ["the cats near the river sleep ."])
    backbone = loaded(ModelConfig(str(folder)), None)
    methods.attach(backbone, config_of(folder, method, **SHORT[method]))
    backbone.model.set_attn_implementation("sdpa")
    front: Any = getattr(backbone.model.base_model, method)
    made, calls = front.made, []
    monkeypatch.setattr(front, "made", lambda: calls.append(1) or made())
    options = Decoding(beam_size=2, max_new_tokens=5, min_length=5, no_repeat_ngram=0, eos_ids=(0,))
    decode(backbone.model, [[5, 9, 4], [7, 6], [11, 4]], options, batch_size=2)
    assert len(calls) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_run_starts_from_a_folder_of_the_same_length(
    method: str, tiny: Path, tmp_path: Path
) -> None:
    given, values = batch(), SHORT[method]
    old, config = attached(tiny, method, **values), config_of(tiny, method, **values)
    move(old)
    folder = write(old, config, tmp_path / "adapter")
    others = [values, values | {"hidden": None}] if method == "prefix" else [values]
    for other in others:  # with a network that makes a prefix, or without one
        config = config_of(tiny, method, 2, **other)
        config.model.init_from = str(folder)
        new = attached(tiny, method, 2, **other)
        init_from.start(new, config)
        torch.testing.assert_close(logits_of(new, given), logits_of(old, given))
    longer = attached(tiny, method, length=9)
    with pytest.raises(UserError, match=rf"of 3 positions .* Give {method}\.length=3"):
        init_from.start(longer, config)
