"""Models and adapters that cannot be had, or do not fit (`tests/models/test_refusing.py` has the
folders of models that are broken)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
import tiny as tiny_models
import torch
from safetensors.torch import load_file, save_file

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder of PEFT with rank 2 on one query."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    tensors = {"lora_A": torch.zeros(2, 32), "lora_B": torch.zeros(32, 2)}
    save_file(
        {f"{QUERY}.{name}.weight": tensor for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def with_tensors(folder: Path, change: Callable[[dict], dict]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def with_config(folder: Path, **more: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def cut(folder: Path, file: str, size: int) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:size])


SAFE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "of a wider model": (
        lambda folder: with_tensors(folder, lambda t: {n: torch.zeros(64, 64) for n in t}),
        "64",
    ),
    "of another architecture": (
        lambda folder: with_tensors(
            folder, lambda t: {n.replace("bert.encoder", "transformer"): v for n, v in t.items()}
        ),
        "transformer",
    ),
    "of more layers": (
        lambda folder: with_tensors(
            folder, lambda t: {n.replace("layer.0", "layer.7"): v for n, v in t.items()}
        ),
        "layer.7",
    ),
    "with NaN": (
        lambda folder: with_tensors(folder, lambda t: {n: v + float("nan") for n, v in t.items()}),
        "holds values that are not finite",
    ),
    "of integers": (
        lambda folder: with_tensors(folder, lambda t: {n: v.int() for n, v in t.items()}),
        "query",
    ),
    "without A": (
        lambda folder: with_tensors(folder, lambda t: {n: v for n, v in t.items() if "A" not in n}),
        "has no lora_A",
    ),
    "without tensors": (lambda folder: with_tensors(folder, lambda t: {}), "no lora_A in it"),
    "without a file": (lambda folder: (folder / SAFE).unlink(), "there is no adapter_model"),
    "empty": (lambda folder: cut(folder, SAFE, 0), "damaged or incomplete"),
    "cut in its header": (lambda folder: cut(folder, SAFE, 20), "damaged or incomplete"),
    "cut in its values": (lambda folder: cut(folder, SAFE, 300), "damaged or incomplete"),
    "with a config that is no JSON": (lambda folder: cut(folder, CONFIG, 9), CONFIG),
    "with an empty config": (lambda folder: cut(folder, CONFIG, 0), CONFIG),
    "of another method": (lambda folder: with_config(folder, peft_type="IA3"), "IA3"),
    "with an alpha that is text": (lambda folder: with_config(folder, lora_alpha="4"), "alpha"),
    "with patterns that take forever": (
        lambda folder: with_config(folder, alpha_pattern={"(a*)*": 1}),
        "matching could take forever",
    ),
    "with what lora_exp lacks": (
        lambda folder: with_config(folder, megatron_config={"a": 1}),
        "megatron_config is set",
    ),
}


@pytest.mark.parametrize("how", ADAPTERS)
def test_an_adapter(adapter: Path, tiny: Path, tmp_path: Path, how: str) -> None:
    spoil, expected = ADAPTERS[how]
    spoil(adapter)
    words = [f"model.init_from={adapter}", f"model.name_or_path={tiny}"]
    assert expected in commands.refused(tmp_path / "outputs", *words)
    out = tmp_path / "out"
    taken = commands.run("import", str(adapter), "--model", str(tiny), "--out", str(out))
    assert expected in taken.message
    assert not out.exists()


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    """The hub cannot be reached: tests/conftest.py forbids to ask."""
    told = commands.refused(tmp_path / "outputs", "model.name_or_path=org/nothing")
    assert "not in the local cache, and the hub did not give it" in told
    assert "hf download org/nothing --local-dir DIR" in told


@pytest.mark.parametrize("task", ["rte", "e2e"])
def test_data_that_is_nowhere(tmp_path: Path, tiny: Path, task: str) -> None:
    told = commands.refused(tmp_path / "outputs", f"task={task}", f"model.name_or_path={tiny}")
    assert "cannot be reached, and the cache" in told
    assert "bring the files: task.data_dir=DIR" in told


HUBS = ["a", "a/b/c", "../x", "/etc/passwd", "csv", "https://example.org/x", "a b/c"]


@pytest.mark.parametrize("name", HUBS)
def test_no_id_of_a_data_set(tmp_path: Path, tiny: Path, name: str) -> None:
    words = ["task=rte", f"task.hub='{name}'", f"model.name_or_path={tiny}"]
    told = commands.refused(tmp_path / "outputs", *words)
    assert "not a data set's id on the hub, which is ORGANISATION/NAME" in told


LARGE = {
    "lora": "lora.r=4000000000",
    "adapter": "adapter.size=4000000000",
    "prefix": "prefix.hidden=4000000000",
    "full_top": "full_top.layers=9",
}


@pytest.mark.parametrize("method", LARGE)
def test_what_is_too_large(tmp_path: Path, tiny: Path, method: str) -> None:
    words = [f"method={method}", LARGE[method], f"model.name_or_path={tiny}"]
    told = commands.refused(tmp_path / "outputs", *words)
    assert "do not fit into memory" in told or "the model has 2 layers" in told


@pytest.mark.parametrize("place", ["outputs", "outputs/leases"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, tiny: Path, place: str) -> None:
    """A file lies where it should be."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    outputs = tmp_path / "outputs"
    told = commands.run(f"outputs={outputs}", f"model.name_or_path={tiny}").message
    assert str(tmp_path / place) in told
    assert not (outputs / "runs").exists()


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_model_of_the_other_kind(tmp_path: Path, architecture: str) -> None:
    """One that cannot write is to write; a language model without a tokenizer's end."""
    folder = tiny_models.save(tmp_path / "model", architecture)
    row = json.dumps({"source": "the king", "references": ["smiles"]})
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(row + "\n")
    words = ["task=generation", "task.name=mine", f"task.data_dir={tmp_path}"]
    told = commands.refused(tmp_path / "outputs", *words, f"model.name_or_path={folder}")
    assert f"model.name_or_path={folder}" in told
