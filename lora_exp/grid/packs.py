"""Which runs of a grid can train together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from lora_exp.grid.queue import Ticket
from lora_exp.methods import shares_backbone
from lora_exp.runs.config import Config, LoraConfig
from lora_exp.runs.folder import RunFolder


def pack_key(config: Config) -> str | None:
    """Runs with equal keys can be trained together over one backbone; None: the run trains alone.

    Rank, alpha and dropout of LoRA, ranks and alphas by pattern, the size of adapters, the length
    of prefixes and prompts, task, seed, learning rate, batch size and number of updates may differ
    within a pack.
    """
    if config.pack.size == 1 or not shares_backbone(config):
        return None
    shared = {
        "method": config.method,
        "model": asdict(replace(config.model, init_from=None)),
        "writes": config.task.kind == "generation",
        "precision": config.train.precision,
        "gradient_checkpointing": config.train.gradient_checkpointing,
        "size": config.pack.size,
    }
    if config.method == "lora":
        shared |= _places(config.lora)
    elif config.method == "adapter":
        shared |= {"kind": config.adapter.kind}
    return json.dumps(shared, sort_keys=True)


def _places(lora: LoraConfig) -> dict[str, Any]:
    """Where there is LoRA."""
    placement = lora.placement
    return {
        "placement": placement.preset if placement.targets is None else sorted(placement.targets),
        "layers": placement.layers,
        "train_head": lora.train_head,
        "left_out": sorted(name for name, rank in placement.rank_pattern.items() if rank == 0),
    }


def tickets(runs: Sequence[RunFolder]) -> list[Ticket]:
    """The runs for a queue, in order, each with the pack it was in before."""
    found = []
    for run in runs:
        config = run.config
        label = run.status.get("pack")
        found.append(Ticket(run.path, pack_key(config), config.pack.size, label))
    return found
