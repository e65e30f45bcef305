"""Runs that differ only in their seed, and what they come to together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_exp.runs.records import RunRecord
from lora_exp.runs.selector import STATES, kinds, value_of
from lora_exp.runs.signature import SECTIONS, UNDECIDING


@dataclass(frozen=True)
class Summary:
    """Values of several seeds."""

    mean: float
    median: float
    deviation: float | None
    """Standard deviation of the sample, n - 1; None for a single seed."""
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary | None:
        """None where there are none."""
        ordered = sorted(values)
        number = len(ordered)
        if not number:
            return None
        mean = math.fsum(ordered) / number
        middle = (ordered[(number - 1) // 2] + ordered[number // 2]) / 2
        squares = math.fsum((value - mean) ** 2 for value in ordered)
        deviation = math.sqrt(squares / (number - 1)) if number > 1 else None
        return cls(mean, middle, deviation, number)


class Group:
    """At least one run."""

    def __init__(self, runs: Sequence[RunRecord]) -> None:
        self.runs = runs

    @property
    def name(self) -> str:
        """As run.json has it."""
        return self.runs[0].group

    def value_of(self, key: str) -> Any:
        """The value of a key that its runs have in common; "" for one of another method."""
        section = "lora" if key == "placement" else key.split(".")[0]
        if section in SECTIONS and section != value_of(self.runs[0], "method"):
            return ""
        return value_of(self.runs[0], key)

    @cached_property
    def results(self) -> list[tuple[int, dict[str, Any]]]:
        """Seed and `result.json` of each run that is done."""
        return [
            (value_of(run, "seed"), run.result)
            for run in self.runs
            if run.state == "done" and run.result is not None
        ]

    @cached_property
    def states(self) -> Counter[str]:
        """How many runs of each state there are."""
        return Counter(run.state for run in self.runs)

    @property
    def unfinished(self) -> list[str]:
        """`2 failed`, `1 running`: what has no result."""
        return [
            f"{self.states[state]} {state}"
            for state in STATES
            if state != "done" and self.states[state]
        ]

    @property
    def metrics(self) -> list[str]:
        """All that any of its results has, in their order."""
        return list(dict.fromkeys(name for _, result in self.results for name in result["metrics"]))

    @cached_property
    def main_metric(self) -> str | None:
        """What tables tell of it: BLEU of text, else what decides the best epoch."""
        return "bleu" if "bleu" in self.metrics else self.selecting

    @property
    def selecting(self) -> str | None:
        """What decides the best epoch."""
        names = [name for name in self.metrics if name != "loss"]
        configured = self.value_of("task.metrics")
        return names[0] if names else configured[0] if configured else None

    def values(self, metric: str) -> dict[int, float]:
        """By seed, where the run has it."""
        return {
            seed: result["metrics"][metric]
            for seed, result in self.results
            if result["metrics"].get(metric) is not None
        }

    def summary(self, metric: str) -> Summary | None:
        """None where no run has it."""
        return Summary.of(self.values(metric).values())

    def of_results(self, name: str) -> list[float]:
        """A number of `result.json`, of each run that has it."""
        return [result[name] for _, result in self.results if result.get(name) is not None]

    @cached_property
    def deciding(self) -> dict[str, Any]:
        """The config without the seed and without what cannot change a result."""
        run = self.runs[0]
        others = SECTIONS - {value_of(run, "method")}
        return {
            key: value_of(run, key)
            for key in kinds()
            if key != "seed"
            and key not in UNDECIDING
            and key.split(".")[0] not in UNDECIDING | others
        }


def grouped(runs: Iterable[RunRecord]) -> list[Group]:
    """The groups of some runs; one whose run.json is lost stands alone."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(run.group or f"run {run.name}", []).append(run)
    return [Group(members) for members in found.values()]
