"""Runs that train together over one frozen backbone. A run alone is a pack of one.

Each has its own batch, loss, gradients, clipping, schedule and random numbers; they share the
passes through the backbone, and the moments at which checkpoints are written. Before and after
every change of members all of them have a checkpoint of the same moment, so that a pack that was
killed goes on exactly where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from uuid import uuid4

import torch
from torch import Tensor

from lora_exp.runs.files import is_disk_full
from lora_exp.runs.lease import Fenced
from lora_exp.train import checkpoint
from lora_exp.train.device import is_out_of_memory
from lora_exp.train.forward import Piece, forward
from lora_exp.train.run import Diverged, Run

log = logging.getLogger("lora_exp")


class Pack:
    """The runs, in order, and what becomes of them.

    Attributes:
        members: those that are being trained.
        at_once: runs in a pass.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.members: list[Run] = []
        self.at_once: int | None = None  # all, as long as memory suffices
        self._name, self._moments = uuid4().hex[:8], 0
        self._failed: dict[Run, Exception] = {}

    def join(self, runs: Sequence[Run]) -> None:
        """Take in runs, each from its newest checkpoint, or several from the newest that they
        share."""
        alone = len(runs) == 1  # its newest it is: then there is nothing to compare
        known = [] if alone else [checkpoint.moments(run.folder.checkpoint) for run in runs]
        begun = [set(moments) for moments in known if moments]
        shared = set.intersection(*begun) if len(begun) > 1 else set()
        together = max(shared, key=lambda moment: int(moment.split(":")[1]), default=None)
        for run in runs:
            with self.blaming(run):
                if run.resume(together):
                    run.log.info("going on from step %d", run.progress.step)
                self.members.append(run)
        if runs and len(self.members) > 1:
            self.save()
        self.expel()

    def leave(self, run: Run) -> None:
        """Let a run go that has ended."""
        self.members.remove(run)

    # -- a step --------------------------------------------------------------------------------

    def step(self) -> None:
        """An update of every member."""
        while True:
            try:
                losses = self._losses()
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._make_room(error)
            torch.cuda.empty_cache()
        for run, loss in losses.items():
            with self.blaming(run):
                run.update(loss)
        self.expel()

    def _losses(self) -> dict[Run, Tensor]:
        """Forward and backward: each member's loss."""
        losses: dict[Run, Tensor] = {}
        size = self.at_once or len(self.members)
        for start in range(0, len(self.members), size):
            members = self.members[start : start + size]
            turns = zip_longest(*([(run, *piece) for piece in run.pieces()] for run in members))
            for run in members:
                losses[run] = torch.zeros((), device=run.device)
            for turn in turns:
                self._pass([place for place in turn if place is not None], losses)
        return losses

    def _pass(self, places: list[tuple[Run, Piece, float]], losses: dict[Run, Tensor]) -> None:
        total = torch.zeros((), device=places[0][0].device)
        with forward([piece for _, piece, _ in places], self.precision) as outputs:
            for (run, piece, share), own in zip(places, outputs, strict=True):
                loss = run.loss(own, piece.batch.labels) * share
                losses[run] = losses[run] + loss.detach()
                total = total + loss
            total.backward()

    def _make_room(self, error: Exception) -> None:
        """Have fewer runs in a pass, then fewer sequences; the batches stay as they are."""
        for run in self.members:
            run.optimiser.clear()
        now = self.at_once or len(self.members)
        if now > 1:
            self.at_once = now // 2
            log.warning("Out of memory: from now on %d runs in a pass, not %d.", now // 2, now)
            return
        sizes = {
            run: run.progress.micro_batch_size or run.config.train.batch_size
            for run in self.members
        }
        if max(sizes.values()) == 1:
            raise MemoryError(
                "not even one sequence fits. Lower train.max_length, or give train.precision=bf16 "
                "or train.gradient_checkpointing=true."
            ) from error
        for run, size in sizes.items():
            if size > 1:
                run.progress.micro_batch_size = size // 2
                run.log.warning("Out of memory: from now on %d sequences in a pass.", size // 2)

    # -- what becomes of the members -----------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of every member, all of the same moment if there are several."""
        self._moments += 1
        together = f"{self._name}:{self._moments}" if len(self.members) > 1 else None
        for run in self.members:
            if run not in self._failed:
                with self.blaming(run):
                    run.save(together)

    def preempt(self) -> None:
        """Save and leave, all members."""
        self.save()
        self.expel()
        for run in self.members:
            with self.blaming(run):
                run.preempt()
        self.expel()

    def cancel(self, run: Run) -> None:
        """Let a run go whose end somebody asked for; the others have a checkpoint first."""
        with self.blaming(run):
            self.save()
            self.leave(run)
            run.preempt("cancelled", save=False)
        self.expel()

    @contextmanager
    def blaming(self, run: Run) -> Iterator[None]:
        """What goes wrong within is one run's own; `expel` lets it go."""
        try:
            yield
        except Exception as error:
            self._failed[run] = error

    def expel(self) -> None:
        """Let those go that failed; the others have a checkpoint first."""
        while self._failed:
            failed, self._failed = self._failed, {}
            self.members = [run for run in self.members if run not in failed]
            if self.members:
                self.save()
            for run, error in failed.items():
                if isinstance(error, Fenced):
                    run.abandon()
                elif is_disk_full(error):
                    run.postpone(f"the disk is full ({error})")
                elif isinstance(error, Diverged):
                    run.fail(str(error))
                else:
                    run.fail(f"{type(error).__name__}: {error}", error)
