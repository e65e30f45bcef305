"""What is learned: the data of a task, checked, and the metrics that measure it.

Nothing here knows a tokenizer or a model; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache

from lora_exp.errors import UserError
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks import agreement, classification, generation
from lora_exp.tasks.data import Examples, GenerationData, Pair, Source, TaskData, groups, pairs

__all__ = [
    "Examples",
    "GenerationData",
    "Pair",
    "Source",
    "TaskData",
    "fingerprint",
    "groups",
    "load",
    "load_generation",
    "pairs",
]


def load(task: TaskConfig) -> TaskData:
    """The examples of a task with labels, every row checked.

    Raises:
        UserError: for data that is missing or malformed, naming file, line and what was expected.
        ValueError: for a task without labels (`load_generation`).
    """
    if task.kind == "generation":
        raise ValueError(f"task {task.name} has no labels")
    if task.kind == "agreement":
        train, validation = agreement.generate(seed=task.data_seed)
        data = TaskData(
            train=_examples(train),
            validation={"validation": _examples(validation)},
            labels=("unacceptable", "acceptable"),
        )
    else:
        data = classification.load(task)
    first = _first(task, len(data.train))
    kept = Examples(data.train.texts[:first], data.train.labels[:first])
    return replace(data, train=kept)


def load_generation(task: TaskConfig) -> GenerationData:
    """The pairs and sources of a task of kind `generation`, every row checked.

    Raises:
        UserError: for data that is missing or malformed, naming file, line and what was expected.
    """
    data = generation.load(task)
    return replace(data, train=data.train[: _first(task, len(data.train))])


def _first(task: TaskConfig, available: int) -> int:
    """How many of the training examples are trained on."""
    wanted = available if task.train_examples is None else task.train_examples
    if wanted > available:
        raise UserError(
            f"task.train_examples={wanted}: the training data of task {task.name} has {available}."
        )
    return wanted


def fingerprint(task: TaskConfig) -> str:
    """What identifies the data in a run's signature, wherever the files lie."""
    if task.kind == "agreement":
        return _generated(task.data_seed)
    if task.kind == "generation":
        return generation.fingerprint(task)
    return classification.fingerprint(task)


@cache
def _generated(seed: int) -> str:
    rows = repr(agreement.generate(seed=seed))
    return f"agreement:{hashlib.sha256(rows.encode()).hexdigest()}"


def _examples(rows: list[tuple[str, int]]) -> Examples:
    return Examples([(sentence,) for sentence, _ in rows], [label for _, label in rows])
