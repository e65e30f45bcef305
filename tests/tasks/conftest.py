from __future__ import annotations

from pathlib import Path

import pytest
from folders import ROWS, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three rows to train on and two to validate."""
    write(tmp_path / "train.tsv")
    write(tmp_path / "dev.tsv", ROWS[:2])
    return tmp_path
