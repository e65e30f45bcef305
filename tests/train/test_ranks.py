"""Several processes train one run as one process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from packs import losses

from lora_exp.runs.folder import RunFolder


def recipe(tiny: Path, outputs: Path, *more: str) -> list[str]:
    return [
        f"model.name_or_path={tiny}",
        f"outputs={outputs}",
        "device=cpu",
        "model.dropout=0",
        "train.max_steps=400",
        "train.eval_every=400",
        "train.batch_size=9",
        "train.log_every=1",
        *more,
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lora_exp", *arguments, "train.devices=2"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_equal_one(tiny: Path, tmp_path: Path) -> None:
    """Gradients over gloo; stopped in the middle by a signal, and gone on."""
    assert forked.run(*recipe(tiny, tmp_path / "one")).status == 0
    arguments = recipe(tiny, tmp_path / "two", "train.checkpoint_seconds=0")
    first = start(arguments)
    while not list((tmp_path / "two").glob("runs/*/checkpoint/*step-*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=60)
    folder = RunFolder(forked.folder_of(tmp_path / "two"))
    assert first.returncode == 128 + signal.SIGTERM, output
    assert folder.status["state"] == "preempted"
    second = start(arguments)
    output = second.communicate(timeout=120)
    assert second.returncode == 0, output
    assert "going on from step" in output[1]
    one = forked.folder_of(tmp_path / "one")
    assert folder.name == one.name
    assert losses(folder.path)[:50] == pytest.approx(losses(one)[:50], rel=1e-5)
    assert losses(folder.path) == pytest.approx(losses(one), rel=1e-3)
    metrics = [RunFolder(path).result for path in (one, folder.path)]
    assert metrics[0] is not None
    assert metrics[1] is not None
    assert metrics[1]["metrics"] == pytest.approx(metrics[0]["metrics"], abs=0.01)


def test_another_number_of_processes_than_asked_for_is_told(tiny: Path, tmp_path: Path) -> None:
    def as_torchrun() -> None:
        os.environ.update(RANK="0", WORLD_SIZE="3", LOCAL_RANK="0")

    ended = forked.run(*recipe(tiny, tmp_path, "train.devices=2"), before=as_torchrun)
    assert ended.status == 2
    assert "is 2, but 3 processes were started" in ended.output
    assert not (tmp_path / "runs").exists()


def test_the_reason_of_a_failed_rank_is_told(tiny: Path, tmp_path: Path) -> None:
    done = start(recipe(tiny, tmp_path, "train.lr=1e30"))
    output = done.communicate(timeout=120)
    assert done.returncode == 1, output
    assert "the loss" in output[1]
    assert "Traceback" not in output[1]
    assert RunFolder(forked.folder_of(tmp_path)).status["state"] == "failed"
