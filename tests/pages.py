"""Runs that have what a report page shows: curves, a log, texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stores import Store

from lora_exp.runs.folder import RunFolder


def group(
    store: Store, name: str, values: Sequence[float], *, curve: int = 2, **config: Any
) -> list[RunFolder]:
    """Runs that are done, one for each seed and value.

    Args:
        store: where.
        name: of the group.
        values: accuracies, to which the runs rise evenly.
        curve: epochs, each with a line on training (its loss 1 / epoch) and an evaluation.
        config: as `Store.run` takes it.
    """
    made = []
    for seed, value in enumerate(values, start=1):
        metrics = {"loss": 0.4, "accuracy": value}
        run = store.run("done", metrics=metrics, group=name, seed=seed, **config)
        lines = []
        for epoch in range(1, curve + 1):
            at = {"step": 10 * epoch, "epoch": float(epoch)}
            measured = {"loss": 0.4, "accuracy": value * epoch / curve}
            lines += [at | {"split": "train", "loss": 1 / epoch}]
            lines += [at | {"split": "validation"} | measured]
        run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        made.append(run)
    return made


def write_texts(run: RunFolder, text: str, number: int = 1) -> None:
    """Texts that a run wrote; their sources are alike but for a number, the first as it is."""
    run.texts_file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"source": text if not n else f"{text} {n}", "output": text, "references": [text]}
        for n in range(number)
    ]
    run.texts_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
