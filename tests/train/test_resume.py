"""A run that is killed and started again ends as if nothing had happened, to the last bit."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest

TIMINGS = ("seconds",)


def recipe(tiny: Path, outputs: Path, *more: str) -> list[str]:
    return [
        f"model.name_or_path={tiny}",
        f"outputs={outputs}",
        "train.max_steps=24",
        "train.eval_every=8",
        "train.log_every=5",
        "train.checkpoint_seconds=0",
        "lora.dropout=0.1",
        *more,
    ]


def outcome(outputs: Path) -> dict[str, Any]:
    """All of a run that must not depend on how often it was interrupted."""
    folder = forked.folder_of(outputs)
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for timing in TIMINGS:
            line.pop(timing, None)
    return {
        "name": folder.name,
        "metrics": result["metrics"],
        "last": result["last_metrics"],
        "best": result["best_epoch"],
        "lines": lines,
        "adapter": {file.name: file.read_bytes() for file in (folder / "adapter").iterdir()},
        "predictions": (folder / "predictions" / "validation.json.gz").read_bytes(),
        "files": sorted(file.name for file in folder.rglob("*") if file.is_file()),
    }


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outputs = tmp_path_factory.mktemp("uninterrupted")
    ended = forked.run(*recipe(tiny, outputs))
    assert ended.status == 0, ended.output
    return outcome(outputs)


def in_step(call: int) -> Callable[[], None]:
    def patch() -> None:
        from lora_exp.train.optimiser import Optimiser

        forked.kill_on_call(Optimiser, "update", call)

    return patch


def in_evaluation(call: int) -> Callable[[], None]:
    def patch() -> None:
        from lora_exp.train import evaluation

        forked.kill_on_call(evaluation, "measure", call)

    return patch


def before_rename(name: str, call: int) -> Callable[[], None]:
    """The temporary file is written, the file itself not yet there."""

    def patch() -> None:
        def is_it(path: Path, target: Path) -> bool:
            return name in str(target)

        forked.kill_on_call(Path, "replace", call, when=is_it)

    return patch


def half_written(owner: str, name: str, file: str, call: int) -> Callable[[], None]:
    """Only the first half of the temporary file is written."""

    def patch() -> None:
        module = importlib.import_module(owner)
        original, calls = getattr(module, name), 0

        def write(*arguments: Any, **keywords: Any) -> None:
            nonlocal calls
            path = next(value for value in arguments if isinstance(value, Path))
            if file in path.name:
                calls += 1
            if file in path.name and calls == call:
                temporary = path.with_name(path.name.removesuffix(".tmp") + ".tmp")
                temporary.write_bytes(b"half of what it would have been")
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments, **keywords)

        setattr(module, name, write)

    return patch


def after_metrics(call: int) -> Callable[[], None]:
    """A line of metrics is written that no checkpoint knows of."""

    def patch() -> None:
        from lora_exp.train.run import Run

        forked.kill_on_call(Run, "note", call)

    return patch


def before_adapter(call: int) -> Callable[[], None]:
    """A checkpoint says that this is the best, and its adapter is not there."""

    def patch() -> None:
        from lora_exp.train.run import Run

        forked.kill_on_call(Run, "write_adapter", call)

    return patch


MOMENTS = {
    "in the first step": in_step(1),
    "in a step": in_step(12),
    "in the last step": in_step(24),
    "in the first evaluation": in_evaluation(1),
    "in the last evaluation": in_evaluation(3),
    "after metrics, before the checkpoint": after_metrics(2),
    "after the checkpoint, before the adapter": before_adapter(1),
    "while the adapter is written": half_written(
        "lora_exp.runs.files", "write", "adapter_model", 1
    ),
    "while a checkpoint is written": half_written(
        "lora_exp.train.checkpoint", "save_file", "step-", 2
    ),
    "before a checkpoint is in place": before_rename("step-", 2),
    "before the result is in place": before_rename("result.json", 1),
    "before the last status is in place": before_rename("status.json", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again(
    moment: str, tiny: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    arguments = recipe(tiny, tmp_path)
    killed = forked.run(*arguments, before=MOMENTS[moment])
    assert killed.status == -signal.SIGKILL, killed.output
    again = forked.run(*arguments)
    assert again.status == 0, again.output
    assert outcome(tmp_path) == uninterrupted


def test_killed_again_and_again(tiny: Path, tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    arguments = recipe(tiny, tmp_path)
    for _ in range(5):
        assert forked.run(*arguments, before=in_step(4)).status == -signal.SIGKILL
    assert forked.run(*arguments).status == 0
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    "what",
    [
        ["method=full"],
        ["method=full_top", "full_top.layers=1"],
        ["method=bitfit"],
        ["method=adapter", "adapter.kind=lin", "adapter.size=4"],
        ["method=prefix", "prefix.hidden=8"],
        ["method=prompt"],
        ["lora.init=pissa", "lora.lr_ratio=16"],
        ["lora.dora=true", "lora.bias=all"],
    ],
    ids=" ".join,
)
def test_other_methods_resume_as_well(what: list[str], tiny: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert forked.run(*recipe(tiny, whole, *what)).status == 0
    arguments = recipe(tiny, broken, *what)
    assert forked.run(*arguments, before=in_step(13)).status == -signal.SIGKILL
    assert forked.run(*arguments).status == 0
    assert outcome(broken) == outcome(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_and_leaves(
    number: signal.Signals, tiny: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    def send_in_step() -> None:
        from lora_exp.train.optimiser import Optimiser

        forked.kill_on_call(Optimiser, "update", 11, number=number)

    arguments = recipe(tiny, tmp_path, "train.checkpoint_seconds=1000")
    left = forked.run(*arguments, before=send_in_step)
    assert left.status == 128 + number, left.output
    status = json.loads((forked.folder_of(tmp_path) / "status.json").read_text())
    assert status["state"] == "preempted"
    assert status["step"] == 11
    assert forked.run(*arguments).status == 0
    assert outcome(tmp_path) == uninterrupted


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(
    tiny: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    def send_in_evaluation() -> None:
        from lora_exp.train.encoding import Encoded

        original = Encoded.by_length

        def by_length(self: Encoded, tokens: int) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return original(self, tokens)

        Encoded.by_length = by_length  # type: ignore[method-assign]

    arguments = recipe(tiny, tmp_path)
    left = forked.run(*arguments, before=send_in_evaluation)
    assert left.status == 128 + signal.SIGTERM, left.output
    assert "validation" not in (forked.folder_of(tmp_path) / "metrics.jsonl").read_text()
    assert forked.run(*arguments).status == 0
    assert outcome(tmp_path) == uninterrupted


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tiny: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    arguments = recipe(tiny, tmp_path)
    assert forked.run(*arguments, before=in_step(12)).status == -signal.SIGKILL
    newest = max((forked.folder_of(tmp_path) / "checkpoint").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = forked.run(*arguments)
    assert again.status == 0, again.output
    assert "damaged" in again.output
    assert outcome(tmp_path) == uninterrupted


def test_checkpoints_do_not_change_the_result(
    tiny: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    assert forked.run(*recipe(tiny, tmp_path, "train.checkpoint_seconds=1000")).status == 0
    assert outcome(tmp_path) == uninterrupted
