"""A small task of text generation, and runs that train for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
from packs import recipe

from lora_exp.runs.config import Config, DecodingConfig, TaskConfig

PLACES = ("Aromi", "Cocum", "Zizzi", "Giraffe", "Strada")
FOODS = ("Thai", "French", "Indian", "pub")
AREAS = ("riverside", "city centre")


def rows(places: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "source": f"name : {place} | food : {food} | area : {area}",
            "references": [
                f"{place} serves {food} food in the {area}.",
                f"In the {area} there is {place}, for {food} food.",
            ],
        }
        for place in places
        for food in FOODS
        for area in AREAS
    ]


def texts() -> list[str]:
    return [text for row in rows(PLACES) for text in (row["source"], *row["references"])]


def config(model: Path, data: Path, outputs: Path, **changes: Any) -> Config:
    task = TaskConfig(name="places", kind="generation", data_dir=str(data), test="test")
    given: dict[str, Any] = {"task": task, "max_length": 120, "max_steps": 6}
    given["decoding"] = DecodingConfig(examples=0)
    return recipe(model, outputs, **(given | changes))


def command(model: Path, data: Path, outputs: Path, *more: str) -> list[str]:
    return [
        "task=generation",
        f"task.data_dir={data}",
        "task.test=test",
        f"model.name_or_path={model}",
        f"outputs={outputs}",
        "lora/placement=all_linear",
        "lora.dropout=0.1",
        "train.lr=3e-2",
        "train.max_steps=6",
        "train.eval_every=2",
        "train.max_length=120",
        "decoding.max_new_tokens=8",
        "decoding.beam_size=2",
        "decoding.min_length=3",
        "decoding.batch_size=5",
        *more,
    ]


def written(outputs: Path) -> list[dict[str, Any]]:
    file = forked.folder_of(outputs) / "generations" / "test.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def worse_and_worse() -> None:
    """The first evaluation is the best; and what needs Java is missing."""
    from lora_exp.train.run import Run

    original = Run.note

    def note(self: Run, metrics: dict[str, float]) -> bool:
        return original(self, metrics | {"perplexity": 100.0 + self.progress.step})

    Run.note = note  # type: ignore[method-assign]
    without_java()


def without_java() -> None:
    """It takes seconds to start."""
    from lora_exp.tasks.scores import java

    java.lacking = lambda: "needs Java, which is not here"  # type: ignore[assignment]
