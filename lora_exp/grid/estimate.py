"""How long the runs of a grid may take, from those that are done."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_exp.grid.plan import PlannedRun
from lora_exp.runs.store import all_runs


def seconds(runs: Sequence[PlannedRun], outputs: Path) -> list[float]:
    """For each run that has a comparable one (same task, backbone, method, batch size and length)
    the median of what those took."""
    wanted = {_kind(asdict(run.config)) for run in runs}
    known: dict[tuple[object, ...], list[float]] = {}
    for folder in all_runs(outputs):
        kind = _kind(folder.provenance.get("config") or {})
        if kind in wanted and (result := folder.result) is not None:
            known.setdefault(kind, []).append(result["wall_seconds"])
    kinds = [_kind(asdict(run.config)) for run in runs]
    return [statistics.median(known[kind]) for kind in kinds if kind in known]


def _kind(config: dict[str, Any]) -> tuple[object, ...]:
    task, model, train = (config.get(part, {}) for part in ("task", "model", "train"))
    length = (train.get(key) for key in ("epochs", "max_steps", "batch_size"))
    return task.get("name"), model.get("name_or_path"), config.get("method"), *length
