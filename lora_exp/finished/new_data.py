"""New data through a finished run: the verb `predict`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp import console
from lora_exp.errors import UserError, nearest
from lora_exp.finished.restored import finished, restore
from lora_exp.runs import files
from lora_exp.runs.predictions import DIGITS
from lora_exp.tasks import tables
from lora_exp.tasks.answered import encoded
from lora_exp.tasks.classification import check_texts
from lora_exp.tasks.generation import read_sources
from lora_exp.text import count

if TYPE_CHECKING:
    import torch

    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config, TaskConfig

AGREEMENT = ["text"]
"""The column that a run of generated data reads."""
Record = dict[str, Any]

log = logging.getLogger("lora_exp")


def predict(
    outputs: Path, wanted: str, source: Path, target: Path, backbone: str | None = None
) -> str:
    """Write a table with what a run says of each row of another one.

    Everything that can be wrong with either file is found before the model is loaded.

    Args:
        outputs: the folder that holds the runs.
        wanted: the run, as in `find_run`.
        source: the rows, in a format that tasks are read from; labels are not needed.
        target: a new file: all columns of the rows and, of a classifier, `prediction` and a
            `probability_LABEL` for each label; `score` of a run that predicts a number; `output` of
            one that writes texts.
        backbone: where the pre-trained model is, if it is no longer where it was.

    Returns:
        What was written, for the user.

    Raises:
        UserError: for what the user can mend.
    """
    run = finished(outputs, wanted)
    config = run.config
    if not source.is_file():
        beside = [each.name for each in source.absolute().parent.glob("[!.]*") if each.is_file()]
        hint = f" {nearest(source.name, beside, kind='files')}" if beside else ""
        raise UserError(f"{source}: there is no such file.{hint}")
    records, texts = _read(config.task, source)
    files.check_new_file(target)
    if config.task.kind == "generation" and tables.kind(target) == "tsv":
        raise UserError(
            f"{target}: texts may have line ends, which TSV cannot hold. Name a file that ends in "
            ".csv or .jsonl."
        )
    encoded(target, records)  # whatever the format cannot hold is found now
    _check_free(source, records, _added(config, (run.result or {}).get("labels")))

    from lora_exp.train.device import choose_device

    device = choose_device("auto")
    restored = restore(run, backbone)
    log.info("%s: %s on %s", run.name, count(len(records), "row"), device)
    answers = (_texts if restored.writes else _answers)(restored, config, texts, device)
    both = [record | answer for record, answer in zip(records, answers, strict=True)]
    files.write_new(target, encoded(target, both))
    return f"{target}: {count(len(records), 'row')}, with {', '.join(answers[0])}."


# -- what is read ----------------------------------------------------------------------------------


def _read(task: TaskConfig, path: Path) -> tuple[list[Record], list[tuple[str, ...]]]:
    """The rows as they are, and what the model reads of each.

    Raises:
        UserError: for a column that is missing and for whatever cannot be read, with the place.
    """
    texts: list[tuple[str, ...]]
    if task.corpus is not None and task.source not in tables.columns(path):
        from lora_exp.tasks import meanings  # a file as the corpus's makers write it

        if not path.name.endswith(meanings.SUFFIXES[task.corpus]):
            raise UserError(
                f"{path}: neither a table with a column {task.source!r} nor a file of "
                f"{task.corpus}: those end in {', '.join(meanings.SUFFIXES[task.corpus])}."
            )
        found = dict.fromkeys(meaning.source for meaning in meanings.read(task.corpus, path))
        records = [{task.source: source} for source in found]
        texts = [(source,) for source in found]
    elif task.kind == "generation":
        texts = [(source,) for _, source, _ in read_sources(task, path)]
        records = [record for _, record in tables.records(path)]
    else:
        columns, texts = task.text or AGREEMENT, []
        for place, values in tables.rows(path, columns):
            check_texts(place, columns, values)
            texts.append(values)
        records = [record for _, record in tables.records(path)]
    if not texts:
        raise UserError(f"{path}: has no rows.")
    return records, texts


def _added(config: Config, labels: Sequence[str] | None) -> list[str]:
    """The columns that predictions add, as far as they are known before the model is loaded."""
    if config.task.kind == "generation":
        return ["output"]
    if config.task.regression:
        return ["score"]
    return ["prediction", *(_probability(name) for name in labels or ())]


def _probability(label: str) -> str:
    return f"probability_{label}"


def _check_free(path: Path, records: Sequence[Record], added: Sequence[str]) -> None:
    taken = {name for record in records for name in record} & {*added}
    if taken:
        raise UserError(
            f"{path}: has a column {min(taken)!r} already, which the predictions would be written "
            "in. Rename it."
        )


# -- what is said ----------------------------------------------------------------------------------


def _answers(
    restored: Backbone, config: Config, texts: Sequence[tuple[str, ...]], device: torch.device
) -> list[Record]:
    """Of each text the class and the probability of each, or the number that is predicted."""
    from lora_exp.train.inference import classify

    with console.progress() as bar:
        logits = classify(restored, config, texts, device, bar)
    if config.task.regression:
        return [{"score": _short(value)} for value in logits.squeeze(-1).tolist()]
    names: Any = restored.model.config.id2label or {}
    rows = zip(logits.argmax(-1).tolist(), logits.double().softmax(-1).tolist(), strict=True)
    return [
        {"prediction": names[best]}
        | {_probability(names[number]): _short(share) for number, share in enumerate(shares)}
        for best, shares in rows
    ]


def _texts(
    restored: Backbone, config: Config, texts: Sequence[tuple[str, ...]], device: torch.device
) -> list[Record]:
    from lora_exp.train.inference import write

    with console.progress() as bar:
        written = write(restored, config, [source for (source,) in texts], device, bar)
    return [{"output": text} for text in written]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
