"""Examples, as plain Python: texts and their labels, sources and their references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Examples:
    """One split."""

    texts: list[tuple[str, ...]]
    """One or two texts per example."""
    labels: list[int] | list[float]
    """The class number, or the number to predict, per example."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """A task's splits and what their labels mean."""

    train: Examples
    validation: dict[str, Examples]
    """Validation splits by name; the first decides the best epoch."""
    labels: tuple[str, ...] | None
    """The name of each class in the order of its number; None for regression."""

    @property
    def outputs(self) -> int:
        """Width of the head: the number of classes, or 1 for regression."""
        return 1 if self.labels is None else len(self.labels)


@dataclass(frozen=True)
class Pair:
    """An example of text generation: what the model reads and what it should write."""

    source: str
    target: str


@dataclass(frozen=True)
class Source:
    """What the model reads, with every reference there is for it."""

    text: str
    references: tuple[str, ...]
    """At least one, in the order of the data."""
    group: str | None = None
    """What results are also given for apart: `seen` or `unseen` (the categories of WebNLG)."""


@dataclass(frozen=True)
class GenerationData:
    """A task's splits. No source occurs twice in one split, but for pairs of the training data."""

    train: list[Pair]
    """One example for each reference, in the order of the data."""
    validation: dict[str, list[Source]]
    """Validation splits by name; the loss on the first (`pairs`) decides the best epoch."""
    test: list[Source]
    """What is generated and measured at the end: `task.test`, else the first validation split."""


def pairs(sources: Sequence[Source]) -> list[Pair]:
    """One example for each reference of each source."""
    return [Pair(source.text, target) for source in sources for target in source.references]


def groups(sources: Sequence[Source]) -> dict[str, list[int]]:
    """The positions that a result is given for: `all`, and each group where sources have groups.

    Groups come in the order of their names.
    """
    found: dict[str, list[int]] = {}
    for position, source in enumerate(sources):
        if source.group is not None:
            found.setdefault(source.group, []).append(position)
    return {"all": list(range(len(sources)))} | dict(sorted(found.items()))
