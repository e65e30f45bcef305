"""What a run said of each example of a split: `predictions/SPLIT.json.gz` in its folder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_exp.runs import files

Answers = Sequence[int] | Sequence[float]
DIGITS = 6
"""Significant ones of a predicted number."""


@dataclass(frozen=True)
class Predictions:
    """Of one evaluation, in the order of the data."""

    split: str
    step: int
    """Updates made before it."""
    labels: Answers
    """What is right: class numbers, or the numbers to predict."""
    predictions: Answers
    """What was said, as many."""

    @property
    def of_classes(self) -> bool:
        """They are class numbers."""
        return all(isinstance(label, int) for label in self.labels)


def write(folder: Path, said: Predictions) -> None:
    """Replace what is kept of a split.

    Args:
        folder: the run's `predictions/`.
        said: to be kept.
    """
    folder.mkdir(exist_ok=True)
    content = asdict(said) | {
        "labels": _short(said.labels),
        "predictions": _short(said.predictions),
    }
    data = json.dumps(content, separators=(",", ":")).encode()
    # Without the time, so that the same predictions are the same file.
    files.write(folder / f"{said.split}.json.gz", gzip.compress(data, mtime=0))


def read(folder: Path) -> dict[str, Predictions]:
    """What is kept, by split; a file that is damaged is left out.

    Args:
        folder: the run's `predictions/`, which may be missing.
    """
    found = {}
    for file in sorted(folder.glob("*.json.gz")):
        try:
            said = Predictions(**json.loads(gzip.decompress(file.read_bytes())))
        except (OSError, EOFError, ValueError, TypeError):
            continue
        found[said.split] = said
    return found


def _short(answers: Answers) -> list[int] | list[float]:
    return [one if isinstance(one, int) else float(f"{one:.{DIGITS}g}") for one in answers]
