"""The cluster that SLURM_CONF names: that of tests/cluster/start."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """Without one there is nothing to test."""
    if "SLURM_CONF" not in os.environ:
        pytest.skip('needs a SLURM cluster: eval "$(tests/cluster/start)"')
