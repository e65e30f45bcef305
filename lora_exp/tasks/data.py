"""Examples: texts and their labels, as plain Python."""

from __future__ import annotations

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
