"""What a machine trains on, without torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_exp.errors import UserError
from lora_exp.grid import devices

LISTED = """\
GPU 0: NVIDIA A100 80GB (UUID: GPU-1111)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2222)
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver lists two GPUs, and a torch that could use them."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<END\n{LISTED}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(devices.metadata, "version", lambda package: "2.13.0+cu130")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("GPU-2222", ["GPU-2222"]),
        ("0,7,1", ["0"]),
        ("-1", []),
        ("", []),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_those_that_cuda_would_show(
    visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = devices.gpus()
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in found] == expected
    assert {device.kind for device in found} <= {"cuda"}


@pytest.mark.usefixtures("two_gpus")
def test_gpus_have_names() -> None:
    assert [gpu.name for gpu in devices.gpus()] == ["NVIDIA A100 80GB", "NVIDIA H100 80GB HBM3"]


@pytest.mark.usefixtures("two_gpus")
def test_a_build_of_torch_without_cuda_uses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.metadata, "version", lambda package: "2.13.0+cpu")
    assert devices.gpus() == []


@pytest.mark.usefixtures("two_gpus")
def test_the_user_says_which_kind() -> None:
    for wanted, expected in (("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")):
        assert {device.kind for device in devices.choose(wanted)} == {expected}


def test_without_gpus_there_is_a_worker_with_one_thread_for_each_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    found = devices.choose("auto")
    assert [device.kind for device in found] == ["cpu"] * 3
    assert found[0].environment["OMP_NUM_THREADS"] == "1"
    with pytest.raises(UserError, match="device=cuda: there is no GPU here"):
        devices.choose("cuda")
