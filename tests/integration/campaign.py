"""What the campaigns share: a model, commands as a user gives them, and what they lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the tests' own models and helpers
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@contextmanager
def workplace(**changes: Any) -> Iterator[tuple[Path, Path]]:
    """A folder for outputs, not made yet, and that of a tiny model; both are gone afterwards.

    Args:
        changes: of the model's config.
    """
    from tiny import save

    with tempfile.TemporaryDirectory(prefix="lora_exp-") as folder:
        yield Path(folder) / "outputs", save(Path(folder) / "tiny-bert", **changes)


def command(*arguments: str) -> list[str]:
    """`python -m lora_exp ARGUMENTS`."""
    return [sys.executable, "-m", "lora_exp", *arguments]


def told(*arguments: str) -> str:
    """What a command writes to its output.

    Raises:
        AssertionError: with all that it said, if it does not end well.
    """
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def temporaries(outputs: Path) -> list[str]:
    """What was left half-written."""
    return [str(path.relative_to(outputs)) for path in outputs.rglob("*.tmp*")]


def end(lost: Sequence[str]) -> None:
    """Leave; with status 1 and what was lost, if anything was."""
    for line in lost:
        print(f"lost: {line}")
    print(f"{len(lost)} lost")
    raise SystemExit(int(bool(lost)))
