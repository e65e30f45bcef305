"""A model that can write, and what it is to learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import save_writer
from writers import PLACES, rows, texts


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, places in (("train", PLACES), ("validation", PLACES[:1]), ("test", PLACES[1:3])):
        lines = [json.dumps(row) for row in rows(places)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("writer"), texts())
