"""A run's identity: a hash of what decides its result, wherever it runs and whoever watches."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from lora_exp.runs.config import Config

# Where a run happens, how often it is written down and who watches: none of it decides the result.
# The data, the backbone and an adapter to start from enter by their fingerprints.
UNDECIDING = {
    "decoding.batch_size",
    "detach",
    "device",
    "dry_run",
    "grid",
    "outputs",
    "pack",
    "rerun",
    "tracker",
    "task.data_dir",
    "task.format",
    "task.hub",
    "task.subset",
    "model.name_or_path",
    "model.revision",
    "model.init_from",
    "train.log_every",
    "train.checkpoint_seconds",
    "train.devices",
    "train.gradient_checkpointing",
    "train.nodes",
}

SECTIONS = {"lora", "full_top", "adapter", "prefix", "prompt"}
"""Each decides the runs of its own method alone."""


def signature(config: Config, *, data: str, backbone: str, start: str | None = None) -> str:
    """Twelve hexadecimal digits that two runs share only if their results must be equal.

    Args:
        config: the run.
        data: fingerprint of the data (`lora_exp.tasks.fingerprint`).
        backbone: fingerprint of the pre-trained model (`lora_exp.models.fingerprint`).
        start: fingerprint of the adapter it starts from, if any (`lora_exp.init_from.fingerprint`).
    """
    return _digest({"config": deciding(config)} | _prints(data, backbone, start))


def group(config: Config, *, data: str, backbone: str, start: str | None = None) -> str:
    """The same without the seed: runs of one group differ only in their seed."""
    decided = deciding(config)
    decided.pop("seed", None)
    return _digest({"group": decided} | _prints(data, backbone, start))


def _prints(data: str, backbone: str, start: str | None) -> dict[str, str]:
    prints = {"data": data, "backbone": backbone}
    return prints if start is None else prints | {"start": start}


def deciding(config: Config) -> dict[str, Any]:
    """The fields that decide a result, as a flat mapping without those that hold their default.

    Leaving defaults out lets a field be added later without changing the signatures that exist.
    """
    undeciding = set(UNDECIDING)
    undeciding |= SECTIONS - {config.method}
    if config.adapter.parameters is not None:
        undeciding.add("adapter.size")
    if config.lora.placement.targets is not None:
        undeciding.add("lora.placement.preset")
    if config.train.max_steps is not None:
        undeciding.add("train.epochs")
    if config.train.warmup_steps is not None:
        undeciding.add("train.warmup_ratio")
    if config.task.kind != "generation":
        undeciding.add("decoding")

    decided: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        for spec in fields(node):
            key, value = prefix + spec.name, getattr(node, spec.name)
            if key in undeciding:
                continue
            if is_dataclass(value):
                visit(value, key + ".")
                continue
            factory = spec.default_factory
            default = spec.default if factory is MISSING else factory()
            if key == "lora.placement.targets" and value is not None:
                value = sorted(value)  # their order does not matter
            if value != default:
                decided[key] = value

    visit(config, "")
    return decided


def slug(config: Config) -> str:
    """A readable name for the run's folder: task, model, method, rank, seed."""
    model = re.split(r"[/:]", config.model.name_or_path.removesuffix("/model").rstrip("/"))[-1]
    parts = [config.task.name, model, config.method]
    if config.method == "lora":
        placement = config.lora.placement
        parts += [f"r{config.lora.r}", "custom" if placement.targets else placement.preset]
    elif config.method == "full_top":
        parts[-1] += str(config.full_top.layers)
    elif config.method == "adapter":
        size = config.adapter.parameters or config.adapter.size
        parts += [config.adapter.kind, str(size)]
    elif config.method in ("prefix", "prompt"):
        parts[-1] += str(getattr(config, config.method).length)
    parts.append(f"seed{config.seed}")
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") or "x" for part in parts)[:120]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
