"""What is learned: the data of a task, checked, and the metrics that measure it.

Nothing here knows a tokenizer or a model; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import hashlib
from functools import cache

from lora_exp.runs.config import TaskConfig
from lora_exp.tasks import agreement, classification
from lora_exp.tasks.data import Examples, TaskData

__all__ = ["Examples", "TaskData", "fingerprint", "load"]


def load(task: TaskConfig) -> TaskData:
    """The task's examples, every row checked.

    Raises:
        UserError: for data that is missing or malformed, naming file, line and what was expected.
    """
    if task.kind == "agreement":
        train, validation = agreement.generate(seed=task.data_seed)
        return TaskData(
            train=_examples(train),
            validation={"validation": _examples(validation)},
            labels=("unacceptable", "acceptable"),
        )
    return classification.load(task)


def fingerprint(task: TaskConfig) -> str:
    """What identifies the data in a run's signature, wherever the files lie."""
    if task.kind == "agreement":
        return _generated(task.data_seed)
    return classification.fingerprint(task)


@cache
def _generated(seed: int) -> str:
    rows = repr(agreement.generate(seed=seed))
    return f"agreement:{hashlib.sha256(rows.encode()).hexdigest()}"


def _examples(rows: list[tuple[str, int]]) -> Examples:
    return Examples([(sentence,) for sentence, _ in rows], [label for _, label in rows])
