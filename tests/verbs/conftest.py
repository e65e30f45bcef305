"""An outputs folder made by hand, and no SLURM but what a test makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import stores


@pytest.fixture
def store(tmp_path: Path) -> stores.Store:
    return stores.Store(tmp_path / "outputs")


@pytest.fixture(autouse=True)
def _no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = dict.fromkeys(("squeue", "sacct", "scancel"), "exit 1")
    monkeypatch.setenv("PATH", stores.commands(tmp_path / "no-slurm", **refusing))
