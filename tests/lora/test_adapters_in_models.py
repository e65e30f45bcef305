"""Adapters in whole transformers models, and against PEFT's mixed batches."""

from __future__ import annotations

from typing import Any

import naive
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from lora_exp import lora

SIZES: dict[str, dict[str, Any]] = {  # without dropout
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
    },
    "gpt2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
}
KINDS: dict[str, Any] = {
    "bert": transformers.AutoModelForSequenceClassification,
    "gpt2": transformers.AutoModelForCausalLM,
}
NUMBERS = torch.randint(1, 30, (4, 7))


def backbone(architecture: str) -> Any:
    """A small model in double precision."""
    config = transformers.AutoConfig.for_model(architecture, vocab_size=30, **SIZES[architecture])
    return KINDS[architecture].from_config(config).double().train()


def adapted(architecture: str) -> tuple[Any, lora.Adapters]:
    model = backbone(architecture)
    targets = lora.preset(architecture, "all_linear") + lora.preset(architecture, "embedding")
    targets += ["wpe"] if architecture == "gpt2" else ["position_embeddings"]
    lora.place(model, targets, r=2, alpha=4, merge_weights=True)
    adapters = lora.Adapters(model)
    for name in "ab":
        fill_gently(model)
        adapters.add(name)
    return model, adapters


def fill_gently(model: Any) -> None:
    naive.fill(model)
    for _, layer in lora.lora_layers(model):
        layer.lora_B.data.mul_(0.1)


def logits(model: Any, numbers: Tensor = NUMBERS) -> Tensor:
    return model(input_ids=numbers).logits


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_mixed_batch_is_each_adapter_alone(architecture: str) -> None:
    model, adapters = adapted(architecture)
    names = "abba"
    with adapters.rows(names):
        mixed = logits(model)
        mixed.square().sum().backward()
    for name in "ab":
        rows = [row for row, one in enumerate(names) if one == name]
        adapters.switch(name)
        alone = logits(model.train(), NUMBERS[rows])
        torch.testing.assert_close(alone, mixed[rows])
        model.zero_grad()
        alone.square().sum().backward()
        own = dict(model.named_parameters())
        for parameter, value in adapters.parameters(name).items():
            torch.testing.assert_close(value.grad, own[parameter].grad)
        with torch.no_grad():
            torch.testing.assert_close(logits(model.eval(), NUMBERS[rows]), alone)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_merged_is_unmerged_in_whole_models_with_tied_weights(architecture: str) -> None:
    model, _ = adapted(architecture)
    with torch.no_grad():
        expected = logits(model)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        torch.testing.assert_close(logits(model.eval()), expected)
        model.load_state_dict(state)
        torch.testing.assert_close(logits(model), expected)
        assert torch.equal(logits(model.train()), expected)
    if architecture == "gpt2":
        assert model.lm_head.weight is model.transformer.wte.weight
        with pytest.raises(lora.AdapterError, match="share one weight"):
            lora.merged_state_dict(model)
    else:
        plain = backbone("bert")
        plain.load_state_dict(lora.merged_state_dict(model))
        torch.testing.assert_close(logits(plain), expected)


def test_mixed_batches_are_those_of_peft() -> None:
    model = backbone("bert").eval()
    lora.place(
        model, ["query", "value", "dense", "word_embeddings"], r=3, alpha=1, leave=["bert.pooler"]
    )
    given = {"lora_alpha": 5, "init_lora_weights": False, "exclude_modules": r".*pooler.*"}
    given |= {"target_modules": ["query", "value", "dense", "word_embeddings"]}
    start = backbone("bert")
    start.load_state_dict(model.state_dict(), strict=False)
    theirs: Any = peft.get_peft_model(start, peft.LoraConfig(r=3, **given), adapter_name="first")
    theirs.add_adapter("second", peft.LoraConfig(r=2, use_rslora=True, **given))
    theirs.double().eval()

    adapters = lora.Adapters(model)
    for name in ("first", "second"):
        adapters.add(name, of_peft(theirs, name))
    names = ["second", "first", "first", "second"]
    with torch.no_grad(), adapters.rows(names):
        found = logits(model)
    with torch.no_grad():
        expected = theirs(input_ids=NUMBERS, adapter_names=names).logits
    torch.testing.assert_close(found, expected)


def of_peft(model: Any, name: str) -> lora.Adapter:
    updates, alphas = {}, {}
    for at, layer in model.base_model.model.named_modules():
        if not isinstance(layer, peft.tuners.lora.LoraLayer):
            continue
        if layer.lora_embedding_A:
            updates[at] = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        else:
            updates[at] = layer.lora_A[name].weight, layer.lora_B[name].weight
        alphas[at] = layer.lora_alpha[name]
    return lora.Adapter(updates, alphas, rslora=model.peft_config[name].use_rslora)


def test_an_adapter_of_another_backbone_is_refused_unless_any_will_do() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    lora.place(model, ["0"], r=2, alpha=4)
    adapters = lora.Adapters(model)
    other = lora.Adapter({"0": (torch.ones(2, 4), torch.ones(4, 2))}, {"0": 4.0}, backbone="x")
    with pytest.raises(lora.OtherBackbone, match="its outputs would be wrong"):
        adapters.add("other", other)
    assert list(adapters) == []
    adapters.add("other", other, any_backbone=True)
    assert list(adapters) == ["other"]
