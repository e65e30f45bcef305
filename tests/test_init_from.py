"""Runs that start from an adapter: of a run, a folder of PEFT, or a file of loralib."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import folders
import forked
import pytest
import torch
from safetensors.torch import load_file

PREFIX = "base_model.model."


def trained(tiny: Path, outputs: Path, *more: str) -> tuple[Path, str]:
    """The folder and the output of a run of few steps."""
    before = set((outputs / "runs").glob("*"))
    ended = forked.run(
        f"model.name_or_path={tiny}", f"outputs={outputs}", "train.max_steps=4", *more
    )
    assert ended.status == 0, ended.output
    (folder,) = set((outputs / "runs").glob("*")) - before
    return folder, ended.output


STILL = ("train.max_steps=1", "train.lr=1e-30", "train.warmup_steps=0")
"""A run whose adapter is that which it starts from."""


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def origin(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something."""
    folder, _ = trained(tiny, tmp_path_factory.mktemp("origin"), "train.lr=1e-2")
    return folder


@pytest.fixture
def outputs(origin: Path, tmp_path: Path) -> Path:
    """An outputs folder with that run in it, alone."""
    shutil.copytree(origin, tmp_path / "runs" / origin.name)
    return tmp_path


def loralib_file(run: Path, path: Path, add: str = "") -> Path:
    """As loralib's users save it."""
    tensors = {
        add
        + name.removeprefix(PREFIX).replace("lora_A.weight", "lora_A").replace("B.weight", "B"): t
        for name, t in weights(run).items()
    }
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("how", ["run", "signature", "folder", "file of PEFT", "file", "module."])
def test_a_run_starts_where_the_other_ended(
    how: str, tiny: Path, origin: Path, outputs: Path
) -> None:
    start = {
        "run": origin.name,
        "signature": origin.name.rsplit("-", 1)[-1],
        "folder": str(origin / "adapter"),
        "file of PEFT": str(origin / "adapter" / "adapter_model.safetensors"),
        "file": str(loralib_file(origin, outputs / "adapter.pt")),
        "module.": str(loralib_file(origin, outputs / "wrapped.pt", "module.")),
    }[how]
    run, output = trained(tiny, outputs, *STILL, f"model.init_from={start}")
    assert "4 layers with LoRA" in output
    assert "start anew" not in output
    old, new = weights(origin), weights(run)
    assert old.keys() == new.keys()
    for name, value in old.items():
        assert torch.equal(new[name], value), name


def test_a_head_of_another_size_starts_anew(tiny: Path, origin: Path, outputs: Path) -> None:
    rows = [("the cat sleeps .", "a"), ("the cats sleep .", "b"), ("a dog .", "c")] * 3
    for split in ("train", "validation"):
        folders.write(outputs / "mine" / f"{split}.tsv", rows)
    task = ("task=classification", "task.name=mine", f"task.data_dir={outputs}", "task.text=[text]")
    run, output = trained(tiny, outputs, *STILL, *task, f"model.init_from={origin.name}")
    assert "Its head does not fit" in output
    old, new = weights(origin), weights(run)
    for name, value in old.items():
        if "classifier" not in name:
            assert torch.equal(new[name], value), name
    assert new[f"{PREFIX}classifier.weight"].shape == (3, 32)


def test_another_scaling_is_kept(tiny: Path, origin: Path, outputs: Path) -> None:
    run, _ = trained(tiny, outputs, *STILL, "lora.alpha=64", f"model.init_from={origin.name}")
    old, new = weights(origin), weights(run)
    for name in old:
        if name.endswith("lora_B.weight"):
            torch.testing.assert_close(new[name] * 64, old[name] * 16)


def test_a_higher_rank_goes_on_in_all_of_its_directions(
    tiny: Path, origin: Path, outputs: Path
) -> None:
    wide = ("lora.r=12", "lora.alpha=24", f"model.init_from={origin.name}")
    start, _ = trained(tiny, outputs, *STILL, *wide)
    moved, _ = trained(tiny, outputs, "train.lr=1e-2", *wide)
    old, first, then = weights(origin), weights(start), weights(moved)
    for name in old:
        if name.endswith("lora_B.weight"):
            assert torch.equal(first[name][:, :8], old[name])
            assert first[name][:, 8:].abs().max() < 1e-20
            assert then[name][:, 8:].abs().max() > 1e-4


def test_the_start_is_part_of_the_signature_by_its_content(
    tiny: Path, origin: Path, outputs: Path
) -> None:
    shutil.copytree(origin / "adapter", outputs / "elsewhere")
    first, _ = trained(tiny, outputs, *STILL, f"model.init_from={origin.name}")
    plain, _ = trained(tiny, outputs, *STILL)
    assert first.name != plain.name
    again = forked.run(
        f"model.name_or_path={tiny}",
        f"outputs={outputs}",
        *STILL,
        f"model.init_from={outputs / 'elsewhere'}",
    )
    assert f"{first.name} is done" in again.output


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_that_the_run_would_not_save_are_refused(
    bias: str, tiny: Path, tmp_path: Path
) -> None:
    old, _ = trained(tiny, tmp_path, f"lora.bias={bias}", "train.lr=1e-2")
    start = (f"model.name_or_path={tiny}", f"outputs={tmp_path}", f"model.init_from={old.name}")
    refused = forked.run(*start, *STILL)
    assert refused.status == 2
    assert "which this run neither trains nor saves" in refused.output
    assert refused.output.strip().endswith(f"Give lora.bias={bias}.")
    new, _ = trained(tiny, tmp_path, *STILL, f"lora.bias={bias}", f"model.init_from={old.name}")
    for name, value in weights(old).items():
        torch.testing.assert_close(weights(new)[name], value)


@pytest.mark.parametrize("method", ["full", "full_top", "adapter", "bitfit", "prefix", "prompt"])
def test_other_methods_go_on_from_their_own(method: str, tiny: Path, tmp_path: Path) -> None:
    same = (f"method={method}", "full_top.layers=1", "train.lr=1e-3")
    old, _ = trained(tiny, tmp_path, *same)
    new, output = trained(tiny, tmp_path, *same, *STILL, f"model.init_from={old.name}")
    assert "tensors" in output
    for name, value in weights(old).items():
        torch.testing.assert_close(weights(new)[name], value, msg=name)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("model.init_from=nowhere",), "model.init_from=nowhere: neither a folder"),
        (("model.init_from=RUN", "lora.r=4"), "rank 8, in the model 4"),
        (("model.init_from=RUN", "lora.placement.targets=[query]"), "value"),
        (("model.init_from=RUN", "method=full"), "trained with method=lora, which method=full"),
        (("model.init_from=RUN", "lora.init=pissa"), "leave out model.init_from"),
        (("model.init_from=CUT",), "damaged or incomplete"),
        (("model.init_from=UNFINISHED",), "this run is failed, not done"),
    ],
)
def test_what_does_not_fit_is_told_before_there_is_a_run(
    more: tuple[str, ...], message: str, tiny: Path, origin: Path, outputs: Path
) -> None:
    cut = outputs / "cut"
    shutil.copytree(origin / "adapter", cut)
    content = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(content[:-100])
    unfinished = outputs / "runs" / "unfinished-0123456789ab"
    shutil.copytree(origin, unfinished)
    (unfinished / "result.json").unlink()
    status = json.loads((unfinished / "status.json").read_text())
    (unfinished / "status.json").write_text(json.dumps(status | {"state": "failed"}))
    names = {"RUN": origin.name, "CUT": str(cut), "UNFINISHED": unfinished.name}
    for word, name in names.items():
        more = tuple(one.replace(f"={word}", f"={name}") for one in more)
    ended = forked.run(f"model.name_or_path={tiny}", f"outputs={outputs}", *more)
    assert ended.status == 2, ended.output
    assert message in ended.output
    assert len(list((outputs / "runs").iterdir())) == 2
