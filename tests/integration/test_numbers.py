"""What a run's numbers depend on: its config and seed, not where and beside what it is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packs import losses, outcome, queue, recipe, train_in_child

from lora_exp.runs.config import Config
from lora_exp.train import evaluation

Change = Callable[[], None]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose products are large enough to be shared out among threads."""
    from tiny import save

    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 512}
    return save(tmp_path_factory.mktemp("models") / "wide-bert", **sizes)


def trained(configs: list[Config], before: Change | None = None) -> list[dict[str, Any]]:
    """All that is to be the same to the last bit, of runs that one new process trains in order."""
    assert train_in_child(configs, 1, before) == 0
    return [outcome(path) for path in queue(configs, 1)]


def test_which_worker_trains_a_run_and_after_which_others_does_not_matter(
    tiny: Path, tmp_path: Path
) -> None:
    """Initial values, order of the data, dropout, evaluations."""

    def runs(outputs: str) -> list[Config]:
        return [
            recipe(tiny, tmp_path / outputs, seed=seed, lora_r=seed, lora_dropout=0.2, eval_every=5)
            for seed in (1, 2, 3)
        ]

    one_worker = trained(runs("one worker"))
    others = [trained([run])[0] for run in runs("a worker each")]
    assert one_worker == others
    assert [*reversed(trained(runs("backwards")[::-1]))] == others
    assert len({str(found["lines"]) for found in others}) == 3


def threads(number: int) -> Change:
    return lambda: torch.set_num_threads(number)


def test_threads_change_nothing_but_rounding(wide: Path, tmp_path: Path) -> None:
    def run(outputs: str) -> list[Config]:
        return [recipe(wide, tmp_path / outputs, batch_size=32, lora_dropout=0.1)]

    [one] = trained(run("one"), threads(1))
    [two] = trained(run("two"), threads(2))
    [again] = trained(run("two again"), threads(2))
    assert two == again
    found, expected = (losses(queue(run(name), 1)[0]) for name in ("two", "one"))
    assert found == pytest.approx(expected, rel=1e-5)
    metrics = [{k: v for k, v in each["metrics"].items() if k != "loss"} for each in (one, two)]
    assert metrics[0] == metrics[1]


def tokens(number: int) -> Change:
    return lambda: evaluation.TOKENS.update(cpu=number)


def test_the_size_of_its_batches_does_not_change_an_evaluation(tiny: Path, tmp_path: Path) -> None:
    """The metrics to the last digit, and what is trained between two of them to the last bit."""

    def run(outputs: str) -> list[Config]:
        return [recipe(tiny, tmp_path / outputs, lr=3e-2, eval_every=4, lora_dropout=0.1)]

    whole, small, single = (
        trained(run(str(number)), tokens(number))[0] for number in (100_000, 300, 1)
    )
    for other in (small, single):
        assert other["adapter"] == whole["adapter"]
        for found, line in zip(other["lines"], whole["lines"], strict=True):
            assert found.pop("loss") == pytest.approx(line["loss"], rel=1e-6)
            assert found == {key: value for key, value in line.items() if key != "loss"}


def test_the_batch_of_an_update_does_not_change_an_evaluation(tiny: Path, tmp_path: Path) -> None:
    """Of the same weights: these do not move."""

    def evaluations(size: int) -> list[dict[str, Any]]:
        run = recipe(tiny, tmp_path / str(size), lr=0.0, max_steps=1, batch_size=size)
        [found] = trained([run])
        return [
            {key: value for key, value in line.items() if key != "epoch"}
            for line in found["lines"]
            if line["split"] == "validation"
        ]

    assert evaluations(3) == evaluations(8) == evaluations(32) != []
