"""Nothing of these tests may train, and no SLURM is asked."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import stores


@pytest.fixture(autouse=True)
def _nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_exp.grid import local
    from lora_exp.train import job, ranks

    def started(*_: object, **__: object) -> NoReturn:
        raise AssertionError("training was started")

    for module, name in ((job, "train_pack"), (ranks, "to_yaml"), (local, "train_runs")):
        monkeypatch.setattr(module, name, started)
    refusing = dict.fromkeys(("squeue", "sacct", "scancel"), "exit 1")
    monkeypatch.setenv("PATH", stores.commands(tmp_path / "no-slurm", **refusing))


@pytest.fixture
def store(tmp_path: Path) -> stores.Store:
    return stores.Store(tmp_path / "outputs")
