"""Adapters put into models: names of other wrappers, other backbones, loralib's files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import loralib
import networks
import pytest
import torch
from networks import bert, convolutions, gpt2, roberta
from torch import Tensor, nn

from lora_exp import lora


def adapted(model: Any, *targets: str, **options: Any) -> Any:
    """With LoRA that is not zero, and a head that was trained."""
    lora.place(model, targets or ["query"], r=4, alpha=6, **options)
    lora.mark_only_lora_as_trainable(model, also=[n for n in ("classifier",) if hasattr(model, n)])
    networks.move(model)
    return model


def saved(model: nn.Module, file: Path, add: str = "", strip: str = "", **more: Any) -> Path:
    """A file as loralib's users have it."""
    state = lora.lora_state_dict(model, **more)
    torch.save({add + name.removeprefix(strip): value for name, value in state.items()}, file)
    return file


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("add", ["", "module.", "_orig_mod.", "module.wrapped."])
def test_names_of_wrappers(add: str, tmp_path: Path) -> None:
    model = adapted(roberta())
    file = saved(model, tmp_path / "adapter.pt", add, also=["classifier"])
    for into in (roberta(), adapted(roberta())):
        act = lora.load if list(lora.lora_layers(into)) else lora.attach
        act(into, lora.read(file, alpha=6))
        torch.testing.assert_close(networks.output(into), networks.output(model))


def test_names_with_and_without_the_backbones_own(tmp_path: Path) -> None:
    model = adapted(roberta())
    whole = lora.read(saved(model, tmp_path / "whole.pt", "module."), alpha=6)
    bare = lora.read(saved(model, tmp_path / "bare.pt", strip="roberta."), alpha=6)
    for adapter in (whole, bare):
        for into, start in ((roberta(), "roberta."), (roberta(kind="RobertaModel"), "")):
            layer = f"{start}encoder.layer.0.attention.self.query"
            assert layer in lora.attach(into, adapter)
            assert torch.equal(
                into.get_parameter(f"{layer}.lora_B"),
                model.get_parameter("roberta.encoder.layer.0.attention.self.query.lora_B"),
            )


def test_biases_and_the_head_go_with_the_layers(tmp_path: Path) -> None:
    model = roberta()
    lora.place(model, ["query"], r=4, alpha=6)
    lora.mark_only_lora_as_trainable(model, "all", also=["classifier"])
    networks.move(model)
    file = saved(model, tmp_path / "a.pt", "module.", bias="all", also=["classifier"])
    into = roberta()
    lora.attach(into, lora.read(file, alpha=6))
    torch.testing.assert_close(networks.output(into), networks.output(model))
    bare = roberta(kind="RobertaModel")
    with pytest.raises(lora.AdapterError, match=r"module\.classifier\.dense.*no such tensor"):
        lora.attach(bare, lora.read(file, alpha=6))
    lora.attach(bare, lora.read(file, alpha=6), leave_out=["module.classifier"])
    bias = "encoder.layer.0.output.LayerNorm.bias"
    assert torch.equal(bare.get_parameter(bias), model.get_parameter(f"roberta.{bias}"))


def test_names_of_another_architecture_are_refused_with_the_nearest(tmp_path: Path) -> None:
    file = saved(adapted(bert()), tmp_path / "adapter.pt")
    for into in (roberta(), adapted(roberta())):
        act = lora.load if list(lora.lora_layers(into)) else lora.attach
        with pytest.raises(
            lora.AdapterError,
            match=r"bert\.encoder\.layer\.0\.attention\.self\.query: the model has no .* "
            r"\(the nearest is roberta\.encoder\.layer\.0\.attention\.self\.query\)",
        ):
            act(into, lora.read(file, alpha=6))


def test_names_that_could_be_two_layers(tmp_path: Path) -> None:
    file = saved(adapted(nn.Sequential(nn.Linear(4, 4)), "0"), tmp_path / "adapter.pt")
    two = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4)), "b": nn.Sequential(nn.Linear(4, 4))})
    with pytest.raises(lora.AdapterError, match=r"0 could be a\.0 and b\.0"):
        lora.attach(two, lora.read(file, alpha=6))
    lora.attach(two["b"], lora.read(file, alpha=6))


def test_several_adapters_take_names_of_wrappers_too(tmp_path: Path) -> None:
    model, other = adapted(roberta()), adapted(roberta())
    file = saved(model, tmp_path / "adapter.pt", "module.")
    adapters = lora.Adapters(other)
    adapters.add("it", lora.read(file, alpha=6))
    adapters.switch("it")
    torch.testing.assert_close(networks.output(other), networks.output(model))


# -- backbones -------------------------------------------------------------------------------------


def test_the_hash_is_of_the_pre_trained_weights_and_of_nothing_else() -> None:
    plain = lora.backbone_hash(bert())
    assert lora.backbone_hash(bert(labels=5)) == plain
    masked = bert(kind="BertForMaskedLM")  # no pooler, another head
    masked.bert.load_state_dict(bert().bert.state_dict(), strict=False)
    assert lora.backbone_hash(masked) == plain
    assert lora.backbone_hash(bert().bert) == plain
    assert lora.backbone_hash(bert().bfloat16()) == plain
    model = adapted(bert(), "query", "word_embeddings")
    assert lora.backbone_hash(model) == plain
    for _, layer in lora.lora_layers(model):
        layer.merge()
    assert lora.backbone_hash(model) == plain


def test_the_hash_is_remembered_until_a_weight_is_another() -> None:
    model = bert()
    table = model.bert.embeddings.word_embeddings
    hashes = [lora.backbone_hash(model)]
    assert lora.backbone_hash(model) == hashes[0]
    with torch.no_grad():
        table.weight[7, 3] += 0.1
    hashes.append(lora.backbone_hash(model))
    table.weight = nn.Parameter(table.weight * 2)
    hashes.append(lora.backbone_hash(model))
    changed = copy.deepcopy(model)
    changed.bert.embeddings.word_embeddings.weight.data[7, 3] += 1
    hashes.append(lora.backbone_hash(changed))
    assert len({*hashes}) == 4


def test_another_backbone_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    model = adapted(bert())
    files = lora.peft_files(model, base_model="theirs", backbone=lora.backbone_hash(bert()))
    adapter = lora.read(networks.write(tmp_path, files))
    lora.attach(bert(labels=2), adapter)
    lora.load(model, adapter)  # its backbone is under LoRA by now
    other = bert()
    other.bert.encoder.layer[1].output.dense.weight.data += 0.01
    before = copy.deepcopy(other.state_dict())
    other.name_or_path = "ours"
    with pytest.raises(lora.OtherBackbone, match=r"trained on theirs, .* not those of ours"):
        lora.attach(other, adapter)
    assert other.state_dict().keys() == before.keys()
    lora.attach(other, adapter, any_backbone=True)


# -- placing what a file needs ---------------------------------------------------------------------


def test_loralibs_slices_of_gpt2(tmp_path: Path) -> None:
    model = gpt2(kind="GPT2LMHeadModel")
    for block in model.transformer.h:
        theirs = loralib.MergedLinear(
            16, 48, r=4, lora_alpha=32, enable_lora=[True, False, True], fan_in_fan_out=True
        )
        theirs.load_state_dict(block.attn.c_attn.state_dict(), strict=False)
        nn.init.normal_(theirs.lora_B)
        block.attn.c_attn = theirs
    state = {f"module.{name}": value for name, value in loralib.lora_state_dict(model).items()}
    torch.save({"model_state_dict": state}, tmp_path / "model.pt")  # as microsoft/LoRA does

    for kind in ("GPT2LMHeadModel", "GPT2Model"):
        into = gpt2(kind=kind)
        layers = lora.attach(into, lora.read(tmp_path / "model.pt", alpha=32))
        layer = into.get_submodule(layers[0])
        assert isinstance(layer, lora.MergedLinear)
        assert layer.enable_lora == (True, False, True)
        if kind == "GPT2LMHeadModel":
            torch.testing.assert_close(networks.output(into), networks.output(model))


def fused(enabled: list[bool], outputs: int = 12) -> dict[str, Tensor]:
    layer = lora.MergedLinear(4, outputs, r=2, enable_lora=enabled)
    nn.init.normal_(layer.lora_B)
    return {"0.lora_A": layer.lora_A, "0.lora_B": layer.lora_B}


@pytest.mark.parametrize(
    ("enabled", "slices"),
    [
        ([True, True, True], ["query", "value"]),  # all of them: nothing is to be known
        ([True, False, True], ["0", "2"]),
        ([False, True, False], ["1"]),
        ([False, False, False, True], ["3"]),
    ],
)
def test_slices_of_layers_that_are_not_known(
    enabled: list[bool], slices: list[str], tmp_path: Path
) -> None:
    torch.save(fused(enabled), tmp_path / "adapter.pt")
    model = nn.Sequential(nn.Linear(4, 12))
    lora.attach(model, lora.read(tmp_path / "adapter.pt", alpha=6), slices=slices)
    layer = model[0]
    assert isinstance(layer, lora.MergedLinear)
    assert layer.enable_lora == tuple(enabled)


@pytest.mark.parametrize("slices", [["query", "value"], ["0"], ["0", "3"], ["0", "1", "2"]])
def test_slices_that_cannot_be(slices: list[str], tmp_path: Path) -> None:
    torch.save(fused([True, False, True]), tmp_path / "adapter.pt")
    model = nn.Sequential(nn.Linear(4, 12))
    with pytest.raises(lora.AdapterError, match="for 2 of the 3 slices of this layer, 0, 1, 2"):
        lora.attach(model, lora.read(tmp_path / "adapter.pt", alpha=6), slices=slices)
    assert type(model[0]) is nn.Linear


def test_loralibs_other_layers(tmp_path: Path) -> None:
    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = loralib.Embedding(9, 6, r=2, lora_alpha=6)
            self.conv = loralib.Conv2d(3, 4, 3, r=2, lora_alpha=6)
            self.fc = loralib.Linear(6, 5, r=3, lora_alpha=6)

    theirs = Theirs()
    for layer in (theirs.words, theirs.conv, theirs.fc):
        nn.init.normal_(layer.lora_A)
        nn.init.normal_(layer.lora_B)
    names = {"conv.conv.weight": "conv.weight", "conv.conv.bias": "conv.bias"}
    plain = nn.ModuleDict(
        {"words": nn.Embedding(9, 6), "conv": nn.Conv2d(3, 4, 3), "fc": nn.Linear(6, 5)}
    )
    state = theirs.state_dict()
    own = {names.get(name, name): value for name, value in state.items() if "lora_" not in name}
    plain.load_state_dict(own)
    torch.save(state, tmp_path / "adapter.pt")  # with the frozen weights
    lora.attach(plain, lora.read(tmp_path / "adapter.pt", alpha=6))
    for module, input in (
        ("words", torch.tensor([[1, 8]])),
        ("conv", torch.randn(1, 3, 5, 5)),
        ("fc", torch.randn(2, 6)),
    ):
        expected = theirs.get_submodule(module)(input)
        torch.testing.assert_close(plain.get_submodule(module)(input), expected)


def test_a_convolution_keeps_its_rank(tmp_path: Path) -> None:
    model = adapted(convolutions(), "plane", "line", "space")
    files = lora.peft_files(model, base_model="ours")
    plain: Any = convolutions()
    lora.attach(plain, lora.read(networks.write(tmp_path, files)))
    assert [layer.r for _, layer in lora.lora_layers(plain)] == [4, 4, 4]
    assert lora.peft_files(plain, base_model="ours") == files


def test_placed_layers_merge_where_they_are_asked_to(tmp_path: Path) -> None:
    model = adapted(bert())
    adapter = lora.read(saved(model, tmp_path / "a.pt", also=["classifier"]), alpha=6)
    plain = bert()
    plain.bert.pooler.train()
    lora.attach(plain, adapter, merge_weights=True)
    assert all(layer.merged for _, layer in lora.lora_layers(plain))
    assert plain.bert.pooler.training
    torch.testing.assert_close(networks.output(plain), networks.output(model))
    with pytest.raises(lora.AdapterError, match="is a LoRA layer already"):
        lora.attach(plain, adapter)


def test_loading_is_refused_as_a_whole(tmp_path: Path) -> None:
    adapter = lora.read(saved(adapted(bert()), tmp_path / "a.pt"), alpha=6)
    for model, message in (
        (
            adapted(bert(), rank_pattern={"layer.1.*.*.query": 2}),
            "rank 4, in the model 2",
        ),
        (adapted(bert(), dora=True), "has no magnitudes, and the layer is a DoraLinear"),
        (adapted(bert(), "value"), "the model has no LoRA layer there"),
    ):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(lora.AdapterError, match=message):
            lora.load(model, adapter)
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_lower_rank_fills_a_higher_one(tmp_path: Path) -> None:
    model = adapted(bert())
    adapter = lora.read(saved(model, tmp_path / "a.pt", also=["classifier"]), alpha=6)
    higher = bert()
    lora.place(higher, ["query"], r=7, alpha=3, rslora=True)
    lora.load(higher, adapter)
    torch.testing.assert_close(networks.output(higher), networks.output(model))


# -- out again -------------------------------------------------------------------------------------


def test_state_dictionaries_for_loralib(tmp_path: Path) -> None:
    model = gpt2()
    lora.place(
        model,
        ["c_attn:query,value", "c_fc", "wte"],
        r=4,
        alpha=6,
        rank_pattern={"c_fc": 2},
        alpha_pattern={"wte": 5},
    )
    lora.mark_only_lora_as_trainable(model, also=["score"])
    networks.move(model)
    state, alpha = lora.loralib_state_dict(model, modules_to_save=["score"])
    alpha = int(alpha)
    theirs = gpt2()
    kinds: dict[str, Any] = {
        "wte": lambda: loralib.Embedding(50, 16, r=4, lora_alpha=alpha),
        "c_attn": lambda: loralib.MergedLinear(
            16, 48, r=4, lora_alpha=alpha, enable_lora=[True, False, True], fan_in_fan_out=True
        ),
        "c_fc": lambda: loralib.Linear(16, 64, r=2, lora_alpha=alpha, fan_in_fan_out=True),
    }
    for name, module in list(theirs.named_modules()):
        if (last := name.rpartition(".")[2]) in kinds:
            layer = kinds[last]()
            layer.load_state_dict(module.state_dict(), strict=False)
            theirs.set_submodule(name, layer)
    assert theirs.load_state_dict(state, strict=False).unexpected_keys == []
    torch.testing.assert_close(networks.output(theirs), networks.output(model))


def test_what_loralib_does_not_have() -> None:
    for model, message in (
        (adapted(bert(), dora=True), "loralib has no DoRA"),
        (
            adapted(gpt2(), "c_attn:query,value", rank_pattern={"c_attn:value": 2}),
            "loralib has no slices of different ranks or widths",
        ),
        (adapted(convolutions(), "line"), "loralib has no convolutions but those"),
        (bert(), "The model has no LoRA layers"),
    ):
        with pytest.raises(lora.AdapterError, match=message):
            lora.loralib_state_dict(model)


def test_what_peft_does_not_have() -> None:
    mixed = adapted(bert(), dora=True)
    lora.place(mixed, ["value"], r=2, alpha=6)
    with pytest.raises(lora.AdapterError, match="DoRA for all layers or for none"):
        lora.peft_files(mixed, base_model="ours")
    with pytest.raises(lora.AdapterError, match="The model has no LoRA layers"):
        lora.peft_files(bert(), base_model="ours")
    with pytest.raises(lora.AdapterError, match="trained in full as well"):
        lora.peft_files(adapted(bert()), base_model="ours", modules_to_save=["bert.encoder"])


def test_merged_weights_are_those_of_a_plain_model() -> None:
    for model, plain in (
        (adapted(bert(), "query", "word_embeddings"), bert()),
        (adapted(bert(), dora=True), bert()),
        (adapted(gpt2(), "c_attn:query,value"), gpt2()),
        (adapted(convolutions(), "plane", "space"), convolutions()),
    ):
        plain.load_state_dict(lora.merged_state_dict(model))
        torch.testing.assert_close(networks.output(plain), networks.output(model))


def test_tied_weights_are_not_merged() -> None:
    model = adapted(gpt2(kind="GPT2LMHeadModel"), "wte")
    with pytest.raises(lora.AdapterError, match=r"transformer\.wte and lm_head share one weight"):
        lora.merged_state_dict(model)
