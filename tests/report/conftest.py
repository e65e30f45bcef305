"""An outputs folder made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import stores


@pytest.fixture
def store(tmp_path: Path) -> stores.Store:
    return stores.Store(tmp_path / "outputs")
