"""A few trials of the crash campaign; `crashes.py` has as many as one likes."""

from __future__ import annotations

import pytest
from integration.crashes import Campaign


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("crashes"))


@pytest.mark.parametrize(
    ("kind", "number"),
    [*(("solo", n) for n in range(5)), *(("pack", n) for n in range(3)), ("grid", 0)],
)
def test_nothing_is_lost(kind: str, number: int, campaign: Campaign) -> None:
    assert campaign.trial(kind, number) == []
    assert campaign.figures[kind].deaths.total() >= campaign.figures[kind].tried
