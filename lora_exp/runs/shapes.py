"""What the files of a run must hold to be believed: disks fail, and people edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from lora_exp.runs.bounds import is_name
from lora_exp.runs.config import Config

NUMBER = (int, float)
STATES = ("queued", "running", "done", "failed", "preempted", "cancelled")
STATUS = {
    "heartbeat": NUMBER,
    "attempt": int,
    "step": int,
    "total_steps": int,
    "epoch": NUMBER,
    "seconds": NUMBER,
    "host": str,
    "pid": int,
    "job": str,
    "reason": str,
}
RESULT = {
    "best_epoch": NUMBER,
    "trainable_parameters": NUMBER,
    "total_parameters": NUMBER,
    "wall_seconds": NUMBER,
    "train_seconds": NUMBER,
    "peak_memory_bytes": NUMBER,
    "sources_per_second": NUMBER,
    "labels": list,
    "missing": dict,
}
ORIGIN = {
    "signature": str,
    "group": str,
    "overrides": list,
    "content": dict,
    "git": dict,
    "packages": dict,
}


def is_status(value: Any) -> bool:
    """`status.json`: a state that there is, and what else is written of it as it should be."""
    return isinstance(value, dict) and value.get("state") in STATES and _fit(value, STATUS)


def is_result(value: Any) -> bool:
    """`result.json`: metrics, one of them not a loss, and what the run took."""
    metrics = value.get("metrics") if isinstance(value, dict) else None
    return (
        isinstance(metrics, dict)
        and _fit(value, RESULT)
        and bool(metrics.keys() - {"loss"})
        and all(isinstance(one, (*NUMBER, type(None))) for one in metrics.values())
        and all(isinstance(reason, str) for reason in (value.get("missing") or {}).values())
    )


def is_origin(value: Any) -> bool:
    """`run.json`: where the run came from; the config in it, if any, is one."""
    whole = isinstance(value, dict) and _fit(value, ORIGIN)
    return whole and (value.get("config") is None or is_config(value["config"]))


def is_text(value: Any) -> bool:
    """A line of `generations/`: what was read, what was written, and what might have been."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("source"), str)
        and isinstance(value.get("output"), str)
        and isinstance(value.get("references"), list)
    )


def is_config(value: Any) -> bool:
    """A config, nested: its sections are mappings, whatever they hold."""
    return isinstance(value, dict) and all(
        isinstance(value.get(section, {}), dict) for section in _sections()
    )


def is_line(value: Any) -> bool:
    """A line of `metrics.jsonl`."""
    return isinstance(value, dict) and isinstance(value.get("step"), NUMBER)


def is_grid(value: Any) -> bool:
    """`grid.json`: its runs, and how it was started."""
    if not (isinstance(value, dict) and isinstance(value.get("runs"), list)):
        return False
    launcher = value.get("launcher")
    named = isinstance(launcher, dict) and isinstance(launcher.get("name"), str)
    return named and all(isinstance(name, str) and is_name(name) for name in value["runs"])


CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "status.json": is_status,
    "result.json": is_result,
    "run.json": is_origin,
}


@cache
def _sections() -> tuple[str, ...]:
    hints = get_type_hints(Config)
    return tuple(spec.name for spec in fields(Config) if is_dataclass(hints[spec.name]))


def _fit(value: Mapping[str, Any], types: Mapping[str, Any]) -> bool:
    return all(
        value.get(name) is None or isinstance(value[name], kind) for name, kind in types.items()
    )
