"""Runs of methods other than LoRA train together as LoRA's do."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from packs import losses, nan_at, outcome, queue, recipe, train, train_in_child
from safetensors.torch import load_file
from tiny import save
from writers import config, without_java

from lora_exp.runs.config import (
    AdapterConfig,
    Config,
    DecodingConfig,
    PrefixConfig,
    PromptConfig,
)
from lora_exp.runs.folder import RunFolder

METHODS = ["adapter", "bitfit", "prefix", "prompt"]
SIZES: dict[str, list[dict[str, Any]]] = {
    "adapter": [{"adapter": AdapterConfig(size=size)} for size in (4, 7, 1, 4)],
    "bitfit": [{}] * 4,
    "prefix": [
        {"prefix": PrefixConfig(length=length, hidden=hidden)}
        for length, hidden in ((3, 8), (5, None), (1, 4), (3, 8))
    ],
    "prompt": [{"prompt": PromptConfig(length=length)} for length in (3, 5, 1, 3)],
}


def mixed(method: str, model: Path, outputs: Path, **more: Any) -> list[Config]:
    """Runs that differ in all that may differ; dropout everywhere (the tiny model's own is 0.1)."""
    changes: Sequence[dict[str, Any]] = (
        {"seed": 1},
        {"seed": 2, "lr": 1e-2, "weight_decay": 0.1},
        {"seed": 3, "batch_size": 3, "max_grad_norm": 0.05},
        {"seed": 4, "micro_batch_size": 3},
    )
    both = zip(changes, SIZES[method], strict=True)
    return [recipe(model, outputs, method=method, **one, **size, **more) for one, size in both]


def train_and_compare(together: list[Config], alone: list[Config], steps: int) -> None:
    """Train the runs as one pack, and each alone; they are to have done the same."""
    assert set(train(together, len(together)).values()) == {"done"}
    assert set(train(alone, 1).values()) == {"done"}
    compare(together, alone, steps)


def compare(together: list[Config], alone: list[Config], steps: int) -> None:
    for packed, solo in zip(queue(together, len(together)), queue(alone, 1), strict=True):
        assert packed.name == solo.name
        assert RunFolder(packed).status["pack"] is not None
        assert len(losses(packed)) == steps
        assert losses(packed) == pytest.approx(losses(solo), rel=1e-5)
        adapter = Path("adapter") / "adapter_model.safetensors"
        ours, theirs = load_file(packed / adapter), load_file(solo / adapter)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_each_run_equals_its_solo_run(method: str, architecture: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", architecture)
    together, alone = (
        mixed(method, model, tmp_path / name, max_steps=10) for name in ("together", "alone")
    )
    train_and_compare(together, alone, 10)


@pytest.mark.parametrize("kind", ["pfeiffer", "lin"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_other_kinds_of_adapters(kind: str, architecture: str, tmp_path: Path) -> None:
    def runs(outputs: Path) -> list[Config]:
        made = mixed("adapter", model, outputs, max_steps=5)
        return [replace(one, adapter=replace(one.adapter, kind=kind)) for one in made]

    model = save(tmp_path / "model", architecture)
    train_and_compare(runs(tmp_path / "together"), runs(tmp_path / "alone"), 5)


@pytest.mark.parametrize("method", METHODS)
def test_the_pre_trained_weights_stay_and_there_is_one_copy(
    method: str, tiny: Path, tmp_path: Path
) -> None:
    from lora_exp.train.pack import Pack
    from lora_exp.train.run import Run
    from lora_exp.train.workplace import Workplace

    workplace, pack = Workplace(torch.device("cpu")), Pack("fp32")
    with ExitStack() as stack:
        runs = []
        for path in queue(mixed(method, tiny, tmp_path, max_steps=5), 4):
            folder = RunFolder(path)
            stack.enter_context(folder.lock())
            backbone, data = workplace.prepare(folder.config)
            runs.append(Run(folder.config, folder, backbone, data, [], 1, shares=True))
        (plain,) = workplace._backbones.values()
        before = {name: p.clone() for name, p in plain.model.named_parameters()}
        pack.join(runs)
        for _ in range(3):
            pack.step()
    assert len(pack.members) == 4
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        copies = [run.model.get_parameter(name) for run in runs]
        if not any(copy.requires_grad for copy in copies):
            assert all(copy is parameter for copy in copies), name
        else:
            assert parameter.ndim == 1 or name in plain.head
            assert len({copy.data_ptr() for copy in copies} - {parameter.data_ptr()}) == 4


BOTH = [*((method, "bert") for method in METHODS), ("prefix", "gpt2"), ("prompt", "gpt2")]
"""What stands in front is another thing in a decoder."""


@pytest.mark.parametrize(("method", "architecture"), BOTH)
def test_one_that_diverges_fails_alone(method: str, architecture: str, tmp_path: Path) -> None:
    def runs(outputs: Path) -> list[Config]:
        return mixed(method, model, outputs, max_steps=15, log_every=5)[:3]

    model = save(tmp_path / "model", architecture)
    assert train_in_child(runs(tmp_path / "whole"), 3) == 0
    assert train_in_child(runs(tmp_path / "broken"), 3, nan_at(2, 6)) == 0
    whole, broken = (
        [RunFolder(path) for path in queue(runs(tmp_path / name), 3)]
        for name in ("whole", "broken")
    )
    assert [folder.status["state"] for folder in broken] == ["done", "failed", "done"]
    assert "the loss is nan at step 6 of 15" in broken[1].status["reason"]
    for one in (0, 2):
        there, here = (
            [line | {"seconds": 0} for line in folders[one].metrics()]
            for folders in (whole, broken)
        )
        assert here[:2] == there[:2]  # steps 1 to 10: not a number since the sixth
        assert losses(broken[one].path) == pytest.approx(losses(whole[one].path), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "architecture", "number"),
    [*((*both, signal.SIGKILL) for both in BOTH), ("adapter", "bert", signal.SIGTERM)],
)
def test_a_pack_that_was_stopped_goes_on_exactly(
    method: str, architecture: str, number: signal.Signals, tmp_path: Path
) -> None:
    """Three runs for two places, of different lengths."""
    from lora_exp.train.optimiser import Optimiser

    def runs(outputs: Path) -> list[Config]:
        made = mixed(method, model, outputs, eval_every=4)[:3]
        return [
            replace(one, train=replace(one.train, max_steps=steps))
            for one, steps in zip(made, (6, 12, 5), strict=True)
        ]

    def stop() -> None:
        forked.kill_on_call(Optimiser, "update", 15, number=number)

    model = save(tmp_path / "model", architecture)
    assert train_in_child(runs(tmp_path / "whole"), 2) == 0
    configs = runs(tmp_path / "stopped")
    ended = train_in_child(configs, 2, stop)
    assert ended == (-number if number == signal.SIGKILL else 128 + number)
    left = [
        config
        for config, path in zip(configs, queue(configs, 2), strict=True)
        if RunFolder(path).result is None
    ]
    assert left
    assert train_in_child(left, 2) == 0
    whole = queue(runs(tmp_path / "whole"), 2)
    assert [outcome(path) for path in queue(configs, 2)] == [outcome(path) for path in whole]


@pytest.mark.parametrize(
    ("method", "architecture"), [("bitfit", "bert"), ("prompt", "bert"), ("prompt", "gpt2")]
)
def test_gradient_checkpointing_changes_nothing(
    method: str, architecture: str, tmp_path: Path
) -> None:
    model = save(tmp_path / "model", architecture)
    plain = mixed(method, model, tmp_path / "plain", max_steps=4)
    again = mixed(method, model, tmp_path / "again", max_steps=4, gradient_checkpointing=True)
    for configs in (plain, again):
        assert set(train(configs, 4).values()) == {"done"}
    for path, other in zip(queue(plain, 4), queue(again, 4), strict=True):
        assert json.dumps(outcome(path)["lines"]) == json.dumps(outcome(other)["lines"])


@pytest.mark.parametrize("method", METHODS)
def test_runs_start_from_others_within_a_pack(method: str, tiny: Path, tmp_path: Path) -> None:
    still = {"max_steps": 1, "lr": 1e-30, "warmup_steps": 0}
    first = mixed(method, tiny, tmp_path, max_steps=4)[:2]
    assert set(train(first, 2).values()) == {"done"}
    origins = [path / "adapter" for path in queue(first, 2)]
    then = [
        replace(
            config,
            model=replace(config.model, init_from=str(origin)),
            train=replace(config.train, **still),
        )
        for config, origin in zip(first, origins, strict=True)
    ]
    assert set(train(then, 2).values()) == {"done"}
    for path, origin in zip(queue(then, 2), origins, strict=True):
        assert RunFolder(path).status["pack"] is not None
        there, here = (
            load_file(folder / "adapter_model.safetensors") for folder in (origin, path / "adapter")
        )
        for name, tensor in there.items():
            torch.testing.assert_close(here[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("method", "architecture"), [("bitfit", "bert"), ("prompt", "bert"), ("prefix", "gpt2")]
)
def test_bf16(method: str, architecture: str, tmp_path: Path) -> None:
    """Also where the words that a prompt begins with are kept in bf16 already."""
    model = save(tmp_path / "model", architecture)
    together, alone = (
        mixed(method, model, tmp_path / name, max_steps=6, precision="bf16")[:2]
        for name in ("together", "alone")
    )
    assert set(train(together, 2).values()) == {"done"}
    for one in alone:  # each in a process of its own
        assert train_in_child([one], 1) == 0
    for packed, solo in zip(queue(together, 2), queue(alone, 1), strict=True):
        assert losses(packed) == pytest.approx(losses(solo), rel=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_runs_that_write(method: str, writer: Path, data: Path, tmp_path: Path) -> None:
    few = DecodingConfig(examples=5, beam_size=2, max_new_tokens=6, min_length=3, batch_size=3)
    given = {"method": method, "max_length": 100, "lr": 3e-2, "decoding": few}

    def runs(outputs: Path) -> list[Config]:
        return [
            config(writer, data, outputs, seed=seed, **given, **size)
            for seed, size in enumerate(SIZES[method][:2])
        ]

    together, alone = runs(tmp_path / "together"), runs(tmp_path / "alone")
    assert train_in_child(together, 2, without_java) == 0
    assert train_in_child(alone, 1, without_java) == 0
    compare(together, alone, 6)
    for packed, solo in zip(queue(together, 2), queue(alone, 1), strict=True):
        texts, expected = (list(RunFolder(path).texts()) for path in (packed, solo))
        assert len(texts) == 5
        assert texts == expected


def test_an_architecture_that_is_padded_trains_alone(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "deberta-v2")
    configs = [recipe(model, tmp_path, method=method, max_steps=2) for method in METHODS]
    states = train([*configs], 4)
    assert set(states.values()) == {"done"}
    assert [RunFolder(path).status["pack"] for path in states] == [None] * 4
