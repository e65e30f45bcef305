"""Folders of PEFT, theirs to us and ours to them; and files that are damaged or hostile."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from networks import Make, bert, convolutions, gpt2
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_exp import lora
from lora_exp.lora.files import CONFIG, PICKLE, WEIGHTS

QUERY = "bert.encoder.layer.0.attention.self.query"
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "linear": (bert, {"target_modules": ["query", "value"], "lora_alpha": 6}),
    "head": (bert, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "rsLoRA": (bert, {"target_modules": ["query"], "use_rslora": True, "lora_alpha": 3}),
    "patterns": (
        bert,
        {
            "target_modules": ["query", "value", "dense"],
            "rank_pattern": {"layer.0.*query": 2, "^bert.pooler.dense": 1},
            "alpha_pattern": {r".*layer\.1.*query": 9, "value": 5},
            "use_rslora": True,
        },
    ),
    "embedding": (bert, {"target_modules": ["word_embeddings", "key"], "lora_alpha": 5}),
    "DoRA": (bert, {"target_modules": ["query", "dense"], "use_dora": True}),
    "biases of LoRA": (bert, {"target_modules": ["query", "dense"], "bias": "lora_only"}),
    "all biases": (bert, {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"}),
    "modules": (
        bert,
        {"target_modules": ["query"], "modules_to_save": ["bert.pooler.dense", "classifier"]},
    ),
    "GPT-2": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "convolutions": (convolutions, {"target_modules": ["plane", "line", "space"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_from_peft_and_back(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    expected = networks.trained_by_peft(make, tmp_path / "theirs", r=4, **config)
    assert not torch.allclose(expected, networks.output(make()), atol=1e-7)

    model = make()
    lora.attach(model, lora.read(tmp_path / "theirs"))
    torch.testing.assert_close(networks.output(model), expected)

    modules = config.get("modules_to_save", ["classifier"] if "task_type" in config else [])

    def write() -> dict[str, bytes]:
        return lora.peft_files(
            model,
            base_model="theirs",
            modules_to_save=modules,
            bias=config.get("bias", "none"),
            task_type=config.get("task_type"),
        )

    contents = write()
    ours = networks.write(tmp_path / "ours", contents)
    torch.testing.assert_close(networks.opened_by_peft(make, ours), expected)

    lora.load(model, lora.read(ours))  # into layers that are there
    torch.testing.assert_close(networks.output(model), expected)
    assert write() == contents


def placed(make: Make, *targets: str, **options: Any) -> Any:
    """With LoRA of our own, not zero, and nothing else changed."""
    model = make()
    lora.place(model, targets, r=4, alpha=6, **options)
    lora.mark_only_lora_as_trainable(model)
    networks.move(model)
    return model


@pytest.mark.parametrize(
    ("make", "targets", "options"),
    [
        pytest.param(gpt2, ["c_attn:query,value", "mlp.c_fc"], {}, id="slices"),
        pytest.param(
            gpt2,
            ["c_attn:query,value"],
            {"rank_pattern": {"c_attn:value": 2}, "rslora": True},
            id="slices of different ranks",
        ),
        pytest.param(bert, ["query", "word_embeddings"], {}, id="embedding"),
        pytest.param(bert, ["query", "value"], {"alpha_pattern": {"value": 3}}, id="alphas"),
        pytest.param(bert, ["query"], {"dora": True}, id="DoRA"),
        pytest.param(convolutions, ["plane", "line", "space", "fc"], {}, id="convolutions"),
    ],
)
def test_to_peft_and_back(
    make: Make, targets: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    model = placed(make, *targets, **options)
    expected = networks.output(model)
    folder = networks.write(tmp_path, lora.peft_files(model, base_model="ours"))
    torch.testing.assert_close(networks.opened_by_peft(make, folder), expected)

    plain = make()
    lora.attach(plain, lora.read(folder))
    torch.testing.assert_close(networks.output(plain), expected)

    same = make()
    lora.place(same, targets, r=4, alpha=6, **options)
    lora.load(same, lora.read(folder))
    torch.testing.assert_close(networks.output(same), expected)
    assert lora.peft_files(same, base_model="ours").keys() == {CONFIG, WEIGHTS}


def test_pissa_is_saved_for_the_weights_as_they_were(tmp_path: Path) -> None:
    model = bert()
    lora.place(model, ["query", "value"], r=4, alpha=6)
    lora.initialise_pissa(model)
    lora.mark_only_lora_as_trainable(model)
    networks.move(model)
    folder = networks.write(tmp_path, lora.peft_files(model, base_model="ours"))
    torch.testing.assert_close(networks.opened_by_peft(bert, folder), networks.output(model))
    with pytest.raises(lora.AdapterError, match="PiSSA took a part out of this weight"):
        lora.load(model, lora.read(folder))


def test_merged_or_not_the_files_are_the_same() -> None:
    model = placed(bert, "query")
    files = lora.peft_files(model, base_model="ours")
    for _, layer in lora.lora_layers(model):
        layer.merge()
    assert lora.peft_files(model, base_model="ours") == files


class Twins(nn.Module):
    """The name of one layer is the end of the other's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleDict({"fc": nn.Linear(8, 8)})
        self.fc = nn.Linear(8, 8)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.inner["fc"](image))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_layer_is_not_taken_for_one_whose_name_ends_so(rank: int, tmp_path: Path) -> None:
    model = placed(Twins, "inner.fc" if rank == 0 else "fc")
    if rank:
        model = Twins()
        lora.place(model, ["fc"], r=4, alpha=6, rank_pattern={"fc": 4, "inner.fc": 4})
    folder = networks.write(tmp_path, lora.peft_files(model, base_model="ours"))
    torch.testing.assert_close(networks.opened_by_peft(Twins, folder), networks.output(model))


# -- damaged and hostile files ---------------------------------------------------------------------


def adapter_folder(folder: Path) -> Path:
    """A good one, as PEFT saves it."""
    networks.trained_by_peft(bert, folder, r=4, target_modules=["query"], task_type="SEQ_CLS")
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_folder(tmp_path_factory.mktemp("adapters") / "good")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return networks.write(
        tmp_path / "adapter", {name: (good / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    )


def refused(path: Path, **options: Any) -> str:
    """Why an adapter cannot be read, or does not fit a BERT that must stay as it is."""
    model = bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(lora.AdapterError) as caught:
        lora.attach(model, lora.read(path, **options))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    return str(caught.value)


def with_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def test_a_good_one_is_read(folder: Path) -> None:
    adapter = lora.read(folder)
    assert len(adapter.updates) == 2
    assert adapter.alphas[QUERY] == 8
    assert set(adapter.others) == {"classifier.weight", "classifier.bias"}
    for file in (folder / CONFIG, folder / WEIGHTS):
        assert lora.read(file).updates.keys() == adapter.updates.keys()
    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
    (folder / WEIGHTS).unlink()
    assert lora.read(folder).updates.keys() == adapter.updates.keys()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3', not 'LORA'"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None, not a number"),
    "alpha as text": ({"lora_alpha": "16"}, "lora_alpha is '16', not a number"),
    "alpha as truth": ({"lora_alpha": True}, "lora_alpha is set"),
    "no finite alpha": ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a number"),
    "huge alpha": ({"lora_alpha": 10**400}, "not a number"),
    "patterns as list": ({"alpha_pattern": ["query"]}, "alpha_pattern is ['query'], not a mapping"),
    "a broken pattern": ({"alpha_pattern": {"(query": 3}}, "alpha_pattern: '(query': missing )"),
    "a repeated group": ({"alpha_pattern": {"(.*a)*b": 3}}, "'(.*a)*b': matching could take"),
    "many repeats": ({"alpha_pattern": {".*" * 20 + "x": 3}}, "matching could take forever"),
    "many groups": ({"alpha_pattern": {"(e|e)" * 40: 3}}, "matching could take forever"),
    "verbose": ({"alpha_pattern": {"(?x:(e*) *)": 3}}, "matching could take forever"),
    "a pattern's value": ({"alpha_pattern": {"query": {}}}, "lora_alpha is {}, not a number"),
    "rsLoRA as text": ({"use_rslora": "no"}, "use_rslora is 'no', not true or false"),
    "a model's name": ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3, not a name"),
    "DoRA without magnitudes": ({"use_dora": True}, "has no lora_magnitude_vector"),
    "QALoRA": ({"use_qalora": True}, "use_qalora is set, which lora_exp does not have"),
    "biases of B": ({"lora_bias": True}, "lora_bias is set"),
    "layers repeated": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is set"),
    "activated LoRA": ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is set"),
    "parameters": ({"target_parameters": ["experts.up"]}, "target_parameters is set"),
    "what is to come": ({"use_something_new": True}, "use_something_new is set"),
    "what is to come, as a config": ({"new_config": {"k": 1}}, "new_config is set"),
    "changed weights": ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "an unknown start": ({"init_lora_weights": {"a": 1}}, "init_lora_weights is"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_not_understood(case: str, folder: Path) -> None:
    changes, message = CONFIGS[case]
    said = refused(with_config(folder, **changes))
    assert message in said
    assert said.startswith(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "peft_type is None"),
        (b"{}", "peft_type is None"),
    ],
)
def test_configs_that_are_none(content: bytes, message: str, folder: Path) -> None:
    (folder / CONFIG).write_bytes(content)
    assert message in refused(folder)


NAME = f"base_model.model.{QUERY}.lora_A.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no B": (lambda t: t.pop(NAME.replace("_A", "_B")), "has no lora_B"),
    "no A": (lambda t: t.pop(NAME), "has no lora_A"),
    "nothing": (lambda t: t.clear(), "there is no lora_A in it"),
    "NaN": (lambda t: t[NAME].fill_(float("nan")), "holds values that are not finite"),
    "infinity": (lambda t: t[NAME][0].fill_(float("inf")), "holds values that are not finite"),
    "NaN in the head": (
        lambda t: t["base_model.model.classifier.bias"].fill_(float("nan")),
        "base_model.model.classifier.bias holds values that are not finite",
    ),
    "integers": (lambda t: t.update({NAME: torch.ones(4, 16).long()}), "holds integers"),
    "complex": (lambda t: t.update({NAME: torch.ones(4, 16) * 1j}), "type complex64"),
    "8 bits": (
        lambda t: t.update({NAME: torch.ones(4, 16).to(torch.float8_e4m3fn)}),
        "type float8_e4m3fn",
    ),
    "a vector": (lambda t: t.update({NAME: torch.ones(4)}), "A and B are [4] and [16, 4]"),
    "a number": (lambda t: t.update({NAME: torch.tensor(1.0)}), "A and B are [] and [16, 4]"),
    "rank 0": (lambda t: t.update({NAME: torch.ones(0, 16)}), "A and B are [0, 16]"),
    "another rank": (lambda t: t.update({NAME: torch.ones(3, 16)}), "A and B are [3, 16]"),
    "another width": (lambda t: t.update({NAME: torch.ones(4, 17)}), "instead of [4, 16]"),
    "a kernel": (lambda t: t.update({NAME: torch.ones(4, 16, 1, 1)}), "[4, 16, 1, 1]"),
    "another head": (
        lambda t: t.update({"base_model.model.classifier.weight": torch.ones(5, 16)}),
        "classifier.weight: [5, 16], in the model [3, 16]",
    ),
    "integers in the head": (
        lambda t: t.update({"base_model.model.classifier.bias": torch.ones(3).long()}),
        "classifier.bias: torch.int64, in the model torch.float32",
    ),
    "a tensor too many": (
        lambda t: t.update({"base_model.model.classifer.bias": torch.ones(3)}),
        "classifer.bias: the model has no such tensor (the nearest is classifier.bias)",
    ),
    "a tensor where a layer is": (
        lambda t: t.update({f"base_model.model.{QUERY}": torch.ones(3)}),
        "query: the model has no such tensor",
    ),
    "a layer too many": (
        lambda t: t.update(
            {f"base_model.model.bert.qury.lora_{p}": torch.ones(1, 1) for p in "AB"}
        ),
        "bert.qury: the model has no such module",
    ),
    "a norm": (
        lambda t: t.update(
            {
                f"base_model.model.bert.embeddings.LayerNorm.lora_{p}.weight": torch.ones(1, 1)
                for p in "AB"
            }
        ),
        "bert.embeddings.LayerNorm: is LayerNorm: only plain linear layers",
    ),
    "other weights": (
        lambda t: t.update({f"base_model.model.{QUERY}.base_layer.weight": torch.ones(16, 16)}),
        "not the weight that this model has below its update",
    ),
    "another part of LoRA": (
        lambda t: t.update({f"base_model.model.{QUERY}.lora_diag": torch.ones(4)}),
        "has a lora_diag, which lora_exp does not",
    ),
    "magnitudes": (
        lambda t: t.update({f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(16)}),
        "use_dora is false",
    ),
    "twice": (
        lambda t: t.update({f"base_model.model.{QUERY}.lora_A": torch.ones(4, 16)}),
        "is there twice",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, folder: Path) -> None:
    change, message = TENSORS[case]
    assert message in refused(with_tensors(folder, change))


def test_every_layer_that_does_not_fit_is_told(folder: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "lora_A" in name]:
            tensors[name] = torch.ones(4, 17)

    said = refused(with_tensors(folder, widen))
    assert "layer.0" in said
    assert "layer.1" in said


def test_cut_files_and_flipped_bytes(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        assert "damaged or incomplete" in refused(folder)
    for position in (0, 7, 9, 60):
        spoilt = bytearray(whole)
        spoilt[position] ^= 0xFF
        (folder / WEIGHTS).write_bytes(spoilt)
        assert str(folder) in refused(folder)
    (folder / WEIGHTS).unlink()
    assert f"there is no {WEIGHTS} in it" in refused(folder)
    (folder / WEIGHTS).mkdir()
    assert str(folder) in refused(folder)


def test_what_is_not_there(folder: Path) -> None:
    assert "there is no such file or folder" in refused(folder / "nowhere", alpha=1)
    (folder / CONFIG).unlink()
    assert f"there is no {CONFIG} in it" in refused(folder)
    assert "does not say its alpha" in refused(folder / WEIGHTS)
    (folder / CONFIG).mkdir()
    assert "cannot be read" in refused(folder)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def factors() -> dict[str, Any]:
    return {f"{QUERY}.lora_A": torch.ones(4, 16), f"{QUERY}.lora_B": torch.ones(16, 4)}


@pytest.mark.parametrize("save", [torch.save, lambda value, file: pickle.dump(value, file)])
def test_a_pickle_that_runs_code_runs_none(
    save: Callable[[Any, Any], None], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    for value in (Touch(trap), factors() | {"more": Touch(trap)}):
        with (tmp_path / "adapter.bin").open("wb") as file:
            save(value, file)
        said = refused(tmp_path / "adapter.bin", alpha=1)
        assert "holds more than tensors" in said
        assert "Nothing in it was run" in said
        assert not trap.exists()


PICKLES: dict[str, tuple[Any, str]] = {
    "no mapping": ([1, 2], "not a state dictionary"),
    "numbers": (factors() | {"epoch": 3}, "not a state dictionary"),
    "nested": ({"weights": factors()}, "not a state dictionary"),
    "nested with more": ({"model_state_dict": factors() | {"epoch": 3}}, "not a state dictionary"),
    "no names": (dict(enumerate(factors().values())), "not a state dictionary"),
    "sparse": (factors() | {"x": torch.ones(3).to_sparse()}, "x is not a plain tensor"),
    "without values": (factors() | {"x": torch.ones(3, device="meta")}, "x is not a plain tensor"),
    "repeated": (factors() | {"x": torch.ones(1).expand(10**9)}, "x repeats its values"),
    "empty": ({}, "there is no lora_A in it"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_of_anything_else(case: str, tmp_path: Path) -> None:
    value, message = PICKLES[case]
    torch.save(value, tmp_path / "adapter.pt")
    said = refused(tmp_path / "adapter.pt", alpha=1)
    assert message in said
    assert said.startswith(str(tmp_path / "adapter.pt"))


def test_values_that_were_changed_on_the_disk(tmp_path: Path) -> None:
    contents = lora.peft_files(placed(bert, "query"), base_model="ours")
    folder = networks.write(tmp_path, contents)
    spoilt = bytearray(contents[WEIGHTS])
    for position in (len(spoilt) - 1, len(spoilt) - 1000):
        spoilt[position] ^= 1
        (folder / WEIGHTS).write_bytes(spoilt)
        assert "damaged (its checksum is another)" in refused(folder)
        spoilt[position] ^= 1


def test_written_tensors_are_read_as_they_were(tmp_path: Path) -> None:
    types = (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float64)
    tensors = {str(dtype): torch.ones(3, dtype=dtype) for dtype in types}
    tensors |= {"number": torch.tensor(2.5), "none": torch.ones(0, 2), "turned": torch.rand(3, 2).T}
    (tmp_path / "file").write_bytes(lora.serialise(tensors, {"about": "it"}))
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    with safe_open(tmp_path / "file", "pt") as opened:
        assert opened.metadata()["about"] == "it"
        assert opened.metadata()["format"] == "pt"


def test_cut_and_flipped_pickles(tmp_path: Path) -> None:
    file = tmp_path / "adapter.pt"
    torch.save(factors(), file)
    whole = file.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "damaged" in refused(file, alpha=1)
    for position in range(0, len(whole), 50):
        spoilt = bytearray(whole)
        spoilt[position] ^= 1
        file.write_bytes(spoilt)
        with suppress(lora.AdapterError):  # or it was a byte that nobody reads
            found = lora.read(file, alpha=1).updates[QUERY]
            assert torch.equal(found[0], torch.ones(4, 16))
            assert torch.equal(found[1], torch.ones(16, 4))


def test_alpha_is_given_where_the_file_has_none_and_only_there(folder: Path) -> None:
    torch.save(factors(), folder / "adapter.pt")
    assert "it must be given" in refused(folder / "adapter.pt")
    assert "says its alpha; give none" in refused(folder, alpha=16)
    assert "must be a finite number" in refused(folder / "adapter.pt", alpha=float("inf"))
