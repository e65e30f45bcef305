"""What is said of memory before a step."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from packs import recipe

from lora_exp.runs.config import PackConfig
from lora_exp.train import job, memory
from lora_exp.train.run import Run
from lora_exp.train.workplace import Workplace


def run(tiny: Path, outputs: Path, **changes: Any) -> Run:
    found = job.identify(recipe(tiny, outputs, **changes))
    workplace = Workplace(torch.device("cpu"))
    backbone, data = workplace.prepare(found.config)
    shares = workplace.can_share(found.config, backbone)
    return Run(found.config, found.folder, backbone, data, [], 1, shares=shares)


def test_activations_grow_with_the_pass_and_shrink_with_checkpointing(
    tiny: Path, tmp_path: Path
) -> None:
    small, large, pieces, again = (
        memory.need(run(tiny, tmp_path, **changes))
        for changes in (
            {"batch_size": 8},
            {"batch_size": 32},
            {"batch_size": 32, "micro_batch_size": 8},
            {"batch_size": 32, "gradient_checkpointing": True},
        )
    )
    assert large.tokens > 3 * small.tokens
    per_token = small.activations / small.tokens
    assert large.activations / large.tokens == pytest.approx(per_token, rel=0.01)
    assert pieces.activations < 0.4 * large.activations
    assert again.activations < 0.6 * large.activations


def test_what_the_forecast_computes_is_let_go(tiny: Path, tmp_path: Path) -> None:
    """Nothing of it stays in a worker that goes on to other runs."""
    one = run(tiny, tmp_path, lora_dropout=0.1)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    memory.need(one)
    before = tensors()
    memory.need(one)
    assert tensors() == before


def test_dropout_is_counted(tiny: Path, tmp_path: Path) -> None:
    """A model that was not put into training mode would keep no masks."""
    more = memory.need(run(tiny, tmp_path, lora_dropout=0.1)).activations
    assert more > memory.need(run(tiny, tmp_path)).activations


def test_what_is_trained_counts_with_gradients_and_moments(tiny: Path, tmp_path: Path) -> None:
    one = run(tiny, tmp_path, method="full")
    takes = memory.need(one)
    assert takes.backbone == 0
    assert takes.trained == 16 * sum(p.numel() for p in one.model.parameters())


def test_as_many_runs_as_fit_and_are_of_use(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(tiny, tmp_path, batch_size=2)
    takes = memory.need(one)
    monkeypatch.setattr(memory, "free", lambda device: 10**15)
    busy = memory.pack_size(one, takes)
    tokens = 2 * one.data.train.lengths.mean()
    assert (busy - 1) * tokens < memory.TOKENS["cpu"] <= busy * tokens
    one.config.pack = PackConfig(3)
    assert memory.pack_size(one, takes) == 3
    assert memory.advice(one, takes) is None
    monkeypatch.setattr(memory, "free", lambda device: takes.own)
    assert memory.pack_size(one, takes) == 1
    monkeypatch.setattr(memory, "free", lambda device: takes.trained + takes.activations // 2)
    assert "train.micro_batch_size=1" in (memory.advice(one, takes) or "")


def test_plan_tells_and_trains_nothing(tiny: Path, tmp_path: Path) -> None:
    given = [f"model.name_or_path={tiny}", f"outputs={tmp_path}", "train.max_steps=7"]
    ended = forked.run("plan", *given)
    assert ended.status == 0, ended.output
    assert "7 updates" in ended.output
    assert "memory of a step: about" in ended.output
    assert "train together" in ended.output
    assert ": new" in ended.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-m", "lora.r=1,2"], "plan: tells of one run. Leave out -m"),
        (["lora.q=1"], "lora.q: there is no such key"),
        (["lora.r=0"], "lora.r=0: must be greater than 0"),
    ],
)
def test_plan_of_what_cannot_be(given: list[str], message: str, tmp_path: Path) -> None:
    ended = forked.run("plan", f"outputs={tmp_path}", *given)
    assert ended.status == 2
    assert message in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs").exists()


def test_one_backbone_stays_warm(tiny: Path, tmp_path: Path) -> None:
    workplace = Workplace(torch.device("cpu"))
    prepared = [
        workplace.prepare(job.identify(recipe(tiny, tmp_path, **changes)).config)[0].model
        for changes in ({"seed": 1}, {"seed": 2}, {"seed": 3, "precision": "bf16"})
    ]
    words: list[Any] = [model.get_input_embeddings().weight for model in prepared]
    assert words[0] is words[1]
    assert words[0].data_ptr() != words[2].data_ptr()
    assert words[0].dtype == torch.float32
    assert len(workplace._backbones) == 1


def test_runs_that_differ_in_seed_and_learning_rate_need_one_pass(
    tiny: Path, tmp_path: Path
) -> None:
    passes: list[object] = []
    needs = []
    for changes in ({"batch_size": 4}, {"batch_size": 4, "lr": 0.5, "seed": 7}, {"batch_size": 6}):
        one = run(tiny, tmp_path, **changes)
        one.model.base_model.register_forward_hook(lambda *_: passes.append(None))
        needs.append(memory.need(one))
    assert len(passes) == 2
    assert needs[0].activations // needs[0].tokens == needs[1].activations // needs[1].tokens
