"""`show`: all there is to know of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import typer

from lora_exp.runs.bounds import printable
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.signature import UNDECIDING
from lora_exp.runs.store import find_run
from lora_exp.runs.values import flat
from lora_exp.text import columns, count, numbers
from lora_exp.verbs.arguments import Outputs, Run

OTHERS_SHOWN = 6
"""Most values of other runs that are shown for a key."""
TEXTS_SHOWN = 3
"""Texts of a language model that are shown."""


def show(run: Run, outputs: Outputs = Path("outputs")) -> None:
    """A run's result, how it differs from its neighbours, where it came from, and its config."""
    folder = find_run(outputs, run)
    records = Records(folder.path.parent.parent)
    record = records.of(folder)
    origin = record.origin
    typer.echo(f"{folder.path}\n{record.state}: {_outcome(record)}")
    if record.damaged:
        typer.echo(f"damaged, and read as if they were not there: {', '.join(record.damaged)}")
    for text in islice(folder.texts(), TEXTS_SHOWN):
        told = [f"source: {text['source']}", f"output: {text['output']}"]
        told += [f"reference: {one}" for one in text["references"][:TEXTS_SHOWN]]
        typer.echo("\n" + printable("\n".join(told)))
    for grid in record.grids:
        names = {*records.grid_records[grid.name]["runs"]} - {record.name}
        others = [one for one in records.runs if one.name in names]
        typer.echo(f"\ngrid {grid.name}, with {count(len(others), 'other run')}")
        typer.echo(_differences(record, others))
    typer.echo("")
    for name in ("command", "created", "host", "gpu", "packages", "group", "snapshot"):
        typer.echo(f"{name}: {origin.get(name)}")
    if git := origin.get("git"):
        changed = " with uncommitted changes" if git.get("dirty", git.get("patch")) else ""
        typer.echo(f"code: {git.get('commit')}{changed}")
    if (folder.path / "code.patch").exists():
        typer.echo(f"changes: {folder.path / 'code.patch'}")
    config = folder.path / "config.yaml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.exists() else ""
    typer.echo("\n" + (printable(text.rstrip()) or f"{config}: missing or empty."))


def _outcome(record: RunRecord) -> str:
    result = record.result
    if result is None:
        return record.why or f"step {record.status.get('step', 0)}"
    told = numbers(result["metrics"])
    if result.get("best_epoch") is not None:
        told += f"  at epoch {result['best_epoch']:g}"
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "trained parameters": ("trainable_parameters", lambda value: f"{value:,}"),
        "training time": ("train_seconds", lambda value: f"{value:.1f} s"),
        "peak memory": ("peak_memory_bytes", lambda value: f"{value / 2**20:,.0f} MiB"),
        "generating": ("sources_per_second", lambda value: f"{value:g} sources/s"),
    }
    rest = {
        name: tell(result[key])
        for name, (key, tell) in shown.items()
        if result.get(key) is not None
    }
    rest |= {f"no {metric}": reason for metric, reason in (result.get("missing") or {}).items()}
    return told + "".join(f"\n{name}: {value}" for name, value in rest.items())


def _differences(record: RunRecord, others: Sequence[RunRecord]) -> str:
    """The keys that are not the same in all runs, with this run's value and those of the others."""
    own = dict(flat(record.config))
    configs = [dict(flat(other.config)) for other in others]
    rows = []
    for key in sorted({*own}.union(*configs) - UNDECIDING):
        values = Counter(str(config.get(key)) for config in configs)
        if {*values} - {str(own.get(key))}:
            shown = [value for value, _ in values.most_common(OTHERS_SHOWN)]
            more = ", ..." if len(values) > len(shown) else ""
            rows.append([f"  {key}", str(own.get(key)), ", ".join(shown) + more])
    return columns(["  key", "here", "others"], rows) if rows else "  They are all alike."
