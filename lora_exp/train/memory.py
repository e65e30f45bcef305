"""How much memory a step takes, before it is taken."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora_exp.train.batches import epoch_order
from lora_exp.train.forward import Piece, forward
from lora_exp.train.prepacked import copied_bytes
from lora_exp.train.run import Run

TOKENS = {"cpu": 512, "cuda": 65536}
"""Tokens of a step from which more of them make it no faster, per token, by type of device."""
SHARE = 0.8
"""Of the memory that is free, what a pack may take."""
MOST = 64
"""Runs in a pack."""
WORKING = 0.5
"""What operations take besides, over the activations that are kept: on a CPU, 0.4 to 1 was measured
for single runs and packs."""


@dataclass(frozen=True)
class Need:
    """Bytes that training a run takes."""

    backbone: int
    """What the runs of a pack share: the pre-trained weights that none of them changes."""
    trained: int
    """Parameters that are trained, their gradients and moments."""
    activations: int
    """Kept between forward and backward, in the largest pass of the first epoch."""
    tokens: int
    """Of that pass."""

    @property
    def own(self) -> int:
        """What each further run of a pack adds."""
        return self.trained + round((1 + WORKING) * self.activations)

    def __str__(self) -> str:
        whole = self.backbone + self.own
        total, backbone, trained, activations = (
            f"{part / 2**20:,.0f}"
            for part in (whole, self.backbone, self.trained, self.activations)
        )
        return (
            f"memory of a step: about {total} MiB (backbone {backbone}, trained {trained}, "
            f"activations {1 + WORKING:g} x {activations} for {self.tokens:,} tokens)"
        )


def need(run: Run) -> Need:
    """What a run will take, from a forward pass of its two longest sequences."""
    trained = [p for p in run.model.parameters() if p.requires_grad]
    frozen = [p for p in run.model.parameters() if not p.requires_grad]
    lengths = run.data.train.lengths
    longest = np.argsort(-lengths, kind="stable")[:2].tolist()
    batch = run.data.train.batch(longest)
    like = _what_decides(run, batch.lengths)
    if like not in _found:
        _found[like] = _kept(run, Piece(run.backbone, batch.to(run.device), 0, run.own))
    tokens = _largest_pass(run, lengths)
    return Need(
        backbone=sum(p.nbytes for p in frozen) + copied_bytes(run.model),
        trained=sum(4 * p.nbytes for p in trained),
        activations=_found[like] * tokens // len(batch.input_ids),
        tokens=tokens,
    )


_found: dict[str, int] = {}
"""What passes of this process keep: the next run of a sweep keeps as much as the one before."""


def _what_decides(run: Run, lengths: list[int]) -> str:
    """What `_kept` depends on, and no seed or learning rate."""
    train = replace(run.config.train, lr=0.0)
    config = replace(run.config, train=train, seed=0, outputs="")
    return f"{config} {lengths} {run.device} {run.own is None}"


def _kept(run: Run, piece: Piece) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        # The graph keeps what is returned, and this function: through either, a tensor that knows
        # its graph would keep it for ever.
        return tensor.detach()

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        forward([piece], run.config.train.precision) as (outputs,),
    ):
        run.loss(outputs, piece.batch.labels)
    return sum(found.values())


def _largest_pass(run: Run, lengths: np.ndarray) -> int:
    train = run.config.train
    order = epoch_order(len(lengths), run.config.seed, 0)
    size = run.progress.micro_batch_size or train.batch_size
    size = max(1, min(size, train.batch_size // run.ranks.count))
    return int(np.add.reduceat(lengths[order], np.arange(0, len(order), size)).max())


def pack_size(run: Run, takes: Need) -> int:
    """How many runs such as this one to train together: as many as fit, until passes are large
    enough to keep the device busy."""
    most = run.config.pack.size or MOST
    workers = 1 if run.device.type == "cuda" else os.cpu_count() or 1
    fit = int(SHARE * free(run.device) / workers) // takes.own
    per_step = run.config.train.batch_size * float(run.data.train.lengths.mean())
    busy = -(-TOKENS[run.device.type] // int(per_step))
    return max(1, min(most, fit, busy if run.config.pack.size is None else most))


def free(device: torch.device) -> int:
    """Bytes that processes may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def advice(run: Run, takes: Need) -> str | None:
    """What to change if a run will hardly fit."""
    left = free(run.device) - takes.trained
    passing = takes.own - takes.trained
    if passing <= left:
        return None
    size = run.progress.micro_batch_size or run.config.train.batch_size
    fits = max(1, int(size * left / passing))
    return (
        f"That is more than the {left / 2**20:,.0f} MiB that are free. "
        f"train.micro_batch_size={fits} should fit, or train.gradient_checkpointing=true."
    )
