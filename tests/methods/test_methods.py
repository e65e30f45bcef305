"""What each method trains, how it is saved, and that PEFT opens it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from passes import logits_of
from safetensors.torch import load_file
from tiny import save
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    PreTrainedConfig,
    RobertaConfig,
)

from lora_exp import methods, models
from lora_exp.errors import UserError
from lora_exp.models import Backbone
from lora_exp.runs.config import Config, ModelConfig, PlacementConfig
from lora_exp.train.batches import Batch

ROBERTA: dict[str, Any] = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
DEBERTA_V2_XXL: dict[str, Any] = {
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}


@pytest.mark.parametrize(
    ("config", "r", "expected"),
    [
        (RobertaConfig(**ROBERTA), 8, {"lora": 294_912, "head": 592_130}),
        (RobertaConfig(**ROBERTA, **LARGE), 8, {"lora": 786_432}),
        (DebertaV2Config(**DEBERTA_V2_XXL), 16, {"lora": 4_718_592}),
    ],
    ids=["RoBERTa-base", "RoBERTa-large", "DeBERTa-v2-XXL"],
)
def test_published_numbers_of_trained_parameters(
    config: PreTrainedConfig, r: int, expected: dict[str, int]
) -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    prefix = model.base_model_prefix + "."
    head = frozenset(n for n, _ in model.named_parameters() if not n.startswith(prefix))
    backbone = Backbone(model, None, head, frozenset())  # type: ignore[arg-type]
    run = Config()
    run.lora.r = r
    methods.attach(backbone, run)
    counts = methods.parameter_counts(backbone, "lora")
    assert {part: counts[part] for part in expected} == expected
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == counts["lora"] + counts["head"]


def attached(folder: Path, method: str = "lora", seed: int = 1, **lora: object) -> Backbone:
    """A backbone whose trained weights are not those it started with."""
    backbone = models.load(ModelConfig(str(folder)), outputs=2)
    config = run_config(folder, method, seed, **lora)
    methods.attach(backbone, config)
    return backbone


def run_config(folder: Path, method: str = "lora", seed: int = 1, **lora: object) -> Config:
    config = Config(model=ModelConfig(str(folder)), method=method, seed=seed)
    for name, value in lora.items():
        setattr(config.lora, name, value)
    return config


def move(backbone: Backbone) -> None:
    """As training would: no trained tensor keeps its first value."""
    generator = torch.Generator().manual_seed(0)
    for parameter in methods.trained(backbone.model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def write(backbone: Backbone, config: Config, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    for name, content in methods.method(config.method).files(backbone, config).items():
        (folder / name).write_bytes(content)
    return load_file(folder / "adapter_model.safetensors")


VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "dora and pissa": {"dora": True, "init": "pissa"},
    "biases": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "embedding": {"placement": PlacementConfig(preset="embedding")},
    "last layer": {"placement": PlacementConfig(layers="1")},
    "ranks": {"placement": PlacementConfig(rank_pattern={"query": 2}, alpha_pattern={"value": 7})},
    "frozen head": {"train_head": False},
}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "gpt2"])
@pytest.mark.parametrize("preset", ["qv", "all_linear"])
def test_peft_opens_the_adapter_with_equal_logits(
    architecture: str, preset: str, tmp_path: Path
) -> None:
    check_with_peft(architecture, tmp_path, placement=PlacementConfig(preset=preset))


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_opens_variants_with_equal_logits(variant: str, tmp_path: Path) -> None:
    check_with_peft("bert", tmp_path, **VARIANTS[variant])


def check_with_peft(architecture: str, tmp_path: Path, **lora: Any) -> None:
    from peft import PeftModel

    folder = save(tmp_path / "model", architecture)
    config = run_config(folder, r=3, alpha=5.0, **lora)
    backbone = attached(folder, r=3, alpha=5.0, **lora)
    move(backbone)
    write(backbone, config, tmp_path / "adapter")

    lengths = [7, 4, 9]
    ids = torch.randint(4, 40, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    types = torch.zeros_like(ids) if architecture in ("bert", "deberta-v2") else None
    batch = Batch(ids, types, lengths, torch.zeros(3, dtype=torch.int64))
    backbone.model.eval()
    ours = logits_of(backbone, batch)

    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    base.config.pad_token_id = 0
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    for row, sequence in zip(ours, ids.split(lengths), strict=True):
        torch.testing.assert_close(
            theirs(input_ids=sequence[None]).logits[0], row, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_variant_trains(variant: str, tiny: Path) -> None:
    backbone = attached(tiny, **VARIANTS[variant])
    plain = models.load(ModelConfig(str(tiny)), outputs=2)
    ids = torch.tensor([[2, 7, 9, 3]])
    if "pissa" not in variant and variant != "frozen head":
        names = set(methods.trained(backbone.model)) - backbone.head
        assert names == {n for n in names if "lora_" in n or n.endswith("bias")}
    if variant == "frozen head":
        assert not set(methods.trained(backbone.model)) & backbone.head
        counts = methods.parameter_counts(backbone, "lora")
        assert (counts["lora"], counts["head"]) == (2_048, 0)
    hidden = backbone.model.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(
        hidden, plain.model.base_model(input_ids=ids).last_hidden_state, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"dora": True}, "DoRA"),
        ({"init": "pissa"}, "lora.init=pissa: PiSSA starts from whole linear weights"),
    ],
)
def test_slices_refuse_what_they_cannot_be(
    lora: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        attached(save(tmp_path / "model", "gpt2"), **lora)


def test_the_adapter_is_every_trained_tensor_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    backbone = attached(tiny)
    saved = write(backbone, run_config(tiny), tmp_path / "adapter")
    trained = methods.trained(backbone.model)
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in trained.values())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 16.0, "LORA")


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_full_and_bitfit_save_what_they_train(method: str, tiny: Path, tmp_path: Path) -> None:
    backbone = attached(tiny, method)
    move(backbone)
    saved = write(backbone, run_config(tiny, method), tmp_path / "adapter")
    trained = methods.trained(backbone.model)
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], trained[name]) for name in saved)
    everything = {name for name, _ in backbone.model.named_parameters()}
    if method == "full":
        assert saved.keys() == everything
    else:
        assert saved.keys() == {n for n in everything if n.endswith("bias")} | backbone.head


def test_roberta_base_with_lora_takes_3_6_megabytes() -> None:
    config = RobertaConfig(**ROBERTA)
    model = AutoModelForSequenceClassification.from_config(config)
    head = frozenset(n for n, _ in model.named_parameters() if n.startswith("classifier."))
    backbone = Backbone(model, None, head, frozenset())  # type: ignore[arg-type]
    methods.attach(backbone, Config(model=ModelConfig("roberta-base")))
    files = methods.method("lora").files(backbone, Config(model=ModelConfig("roberta-base")))
    assert 3.5e6 < sum(len(content) for content in files.values()) < 3.6e6


def test_new_weights_depend_on_the_seed_and_not_on_the_method(tiny: Path) -> None:
    def head(method: str, seed: int) -> dict[str, torch.Tensor]:
        backbone = attached(tiny, method, seed)
        return {n: p.detach() for n, p in backbone.model.named_parameters() if n in backbone.head}

    first, same, other = head("lora", 1), head("full", 1), head("lora", 2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all((value == 0).all() for name, value in first.items() if name.endswith("bias"))


def test_lora_never_reaches_the_head(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "roberta")  # its head has layers called dense and out_proj
    with pytest.raises(UserError, match=r"lora\.placement\.targets: 'out_proj' matches no layer"):
        attached(folder, placement=PlacementConfig(targets=["out_proj"]))


def test_an_architecture_without_presets_asks_for_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = AutoConfig.for_model(
        "distilbert", dim=8, hidden_dim=16, n_layers=1, n_heads=2, vocab_size=60
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    from tiny import tokenizer, words

    tokenizer(words(), "distilbert").save_pretrained(folder)
    with pytest.raises(UserError, match="no presets for distilbert models"):
        attached(folder)
    backbone = attached(folder, placement=PlacementConfig(targets=["q_lin", "v_lin"]))
    assert len(methods.trained(backbone.model)) == 4 + len(backbone.head)
