"""What tests of whole commands need."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def cluster() -> None:
    """The one that SLURM_CONF names: that of tests/cluster/start."""
    if "SLURM_CONF" not in os.environ:
        pytest.skip('needs a SLURM cluster: eval "$(tests/cluster/start)"')
