from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A tiny BERT (bare: no head) that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))
