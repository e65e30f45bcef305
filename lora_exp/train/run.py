"""One run in a pack: its data, its optimiser, where it stands, and how that is kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lora_exp import console
from lora_exp.methods import method, parameter_counts, trained
from lora_exp.runs import files, predictions
from lora_exp.runs.config import Config
from lora_exp.runs.folder import RunFolder, State, merit
from lora_exp.runs.lease import Fenced
from lora_exp.runs.predictions import Predictions
from lora_exp.train import checkpoint
from lora_exp.train.batches import epoch_order
from lora_exp.train.device import peak_memory
from lora_exp.train.encoding import Sequences
from lora_exp.train.forward import Piece
from lora_exp.train.optimiser import Optimiser
from lora_exp.train.progress import Progress
from lora_exp.train.ranks import Ranks
from lora_exp.train.vocabulary import cross_entropy

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.tasks.scores import Scores
    from lora_exp.track import Sink
    from lora_exp.train.outputs import TestSet

CHECKPOINT_SHARE = 0.05
"""Checkpoints take at most about this share of the time, however large they are."""
HEARTBEAT_SECONDS = 10.0
LINE_SECONDS = 30.0
"""How often a line about the training loss is written for people."""
BEST = "best."
"""Before the names of the best parameters in a checkpoint."""


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass
class Data:
    """A task, tokenised."""

    train: Sequences
    validation: dict[str, Sequences]
    metrics: list[str]
    """The first decides the best epoch."""
    labels: tuple[str, ...] | None = None
    """The name of each class in the order of its number."""
    test: TestSet | None = None
    """What is generated at the end of a run of text generation."""


class Run:
    """A member of a pack.

    Args:
        config: of the run.
        folder: the run's, locked by this process.
        backbone: with the method attached, on its device.
        data: tokenised.
        sinks: get each line of metrics.
        attempt: number of the attempt, from 1.
        name: before its lines for people, if there are lines of other runs.
        ranks: the processes that train it.
        shares: the backbone's frozen weights may be used by other runs in the same pass.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        backbone: Backbone,
        data: Data,
        sinks: list[Sink],
        attempt: int,
        name: str = "",
        ranks: Ranks | None = None,
        shares: bool = False,
    ) -> None:
        self.config, self.folder, self.backbone = config, folder, backbone
        self.data, self.sinks, self.attempt = data, sinks, attempt
        self.ranks = ranks or Ranks()
        self.model = backbone.model.train()
        self.device = self.model.device
        self.own = method(config.method).own(backbone, config) if shares else None
        self.log = logging.LoggerAdapter(console.log_of(folder.signature), {"run": name})
        self.state = "running"
        self.reason: str | None = None
        self.cancelled = False  # somebody asked for its end
        self.saved_step = 0  # that of the newest checkpoint
        train = config.train
        whole, more = divmod(len(data.train), train.batch_size)
        self.steps_per_epoch = whole + (more > 0 and not train.drop_last)
        self.total_steps = train.max_steps or train.epochs * self.steps_per_epoch
        scheduled = train.max_steps or train.epochs * (whole + (more > 0))
        self.eval_every = train.eval_every or self.steps_per_epoch
        ratio = config.lora.lr_ratio if config.method == "lora" else 1.0
        self.optimiser = Optimiser(trained(self.model), train, scheduled, ratio)
        self.progress = Progress(micro_batch_size=train.micro_batch_size)
        self.best: dict[str, Tensor] | None = None  # parameters to write with, on the CPU
        self.said: Predictions | None = None  # of the last evaluation of a classifier
        self._tokens = 0  # of the update that is being made
        self._unread: list[Tensor] = []  # losses that are still on the device
        self._norm = torch.zeros(())  # of the last update's gradient
        self._clock: float | None = None  # since when updates are being made
        self._begun = self._saved = self._beat = self._told = time.monotonic()
        self._unsaid = False  # the last heartbeat could not be written
        self._save_seconds = 0.0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return round(self.progress.step / self.steps_per_epoch, 4)

    @property
    def evaluation_due(self) -> bool:
        """An evaluation belongs to this step and has not been made."""
        step = self.progress.step
        at_boundary = step % self.eval_every == 0 or step == self.total_steps
        return step > 0 and at_boundary and self.progress.evaluated != step

    @property
    def finished(self) -> bool:
        """All updates are made."""
        return self.progress.step == self.total_steps

    @property
    def checkpoint_due(self) -> bool:
        """Enough time has passed since the last one."""
        pause = max(self.config.train.checkpoint_seconds, self._save_seconds / CHECKPOINT_SHARE)
        return time.monotonic() - self._saved >= pause

    # -- a step --------------------------------------------------------------------------------

    def pieces(self) -> list[tuple[Piece, float]]:
        """The next update's sequences, as many at a time as a pass may have, and the share that
        each piece has in the mean over the batch."""
        train, step = self.config.train, self.progress.step
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(len(self.data.train), self.config.seed, epoch)
        start = place * train.batch_size
        chosen = self._order[1][start : start + train.batch_size]
        self._tokens = int(self.data.train.lengths[chosen].sum())
        weights = self.data.train.weights
        total = max(1, int(weights[chosen].sum()))
        own = chosen[self.ranks.rank :: self.ranks.count].tolist()
        size = self.progress.micro_batch_size or max(1, len(own))
        if self._clock is None:
            self._clock = time.perf_counter()
        pieces = []
        for number, first in enumerate(range(0, len(own), size)):
            some = own[first : first + size]
            batch = self.data.train.batch(some)
            piece = Piece(
                self.backbone, batch.to(self.device), self._stream(step, number), self.own
            )
            pieces.append((piece, int(weights[some].sum()) / total))
        return pieces

    def _stream(self, step: int, number: int) -> int:
        """Dropout is a function of seed and step: a resumed run draws what it would have drawn."""
        others = [self.ranks.rank] if self.ranks.rank else []
        seed = np.random.SeedSequence([self.config.seed, step, number, *others])
        return int(seed.generate_state(1, np.uint64)[0]) >> 1

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Of training: `plain_loss` with label smoothing."""
        return self.plain_loss(outputs, labels, self.config.train.label_smoothing)

    def plain_loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean over what is to be predicted: squared error for regression, else cross entropy.

        Args:
            outputs: as `forward` gives them.
            labels: as in a batch.
            smoothing: of labels.
        """
        if self.backbone.writes:
            head: Any = self.model.get_output_embeddings()
            dtype = torch.bfloat16 if self.config.train.precision == "bf16" else torch.float32
            return cross_entropy(
                outputs, head.weight, head.bias, labels, smoothing=smoothing, dtype=dtype
            )
        if labels.is_floating_point():
            return F.mse_loss(outputs.float().squeeze(-1), labels)
        return F.cross_entropy(outputs.float(), labels, label_smoothing=smoothing)

    def update(self, loss: Tensor) -> None:
        """Make the update.

        Args:
            loss: of this rank's share of the batch, detached and possibly still being computed.
        """
        for buffer in self.optimiser.buffers:
            assert buffer.grad is not None
            self.ranks.sum(buffer.grad)
        self._norm = self.optimiser.update(self.progress.step)
        self._unread.append(self.ranks.sum(loss))
        self.progress.tokens += self._tokens
        self.progress.step += 1
        if self.progress.step % self.config.train.log_every == 0:
            self.write_training_metrics()

    def read_losses(self) -> None:
        """Fetch the losses from the device, and stop the clock of the updates.

        Raises:
            Diverged: naming the first step whose loss is not finite.
        """
        if self._unread:
            losses = torch.stack(self._unread).tolist()
            first = self.progress.step - len(losses) + 1
            self._unread.clear()
            for step, loss in enumerate(losses, start=first):
                if not math.isfinite(loss):
                    raise self.diverged(f"the loss is {loss}", step)
            self.progress.losses += losses
            self.progress.gradient_norm = float(self._norm)
        if self._clock is not None:
            self.progress.train_seconds += time.perf_counter() - self._clock
            self._clock = None

    def diverged(self, what: str, step: int | None = None) -> Diverged:
        """What to raise when a number of this run is not finite, now or at a given step."""
        return Diverged(
            f"{what} at step {step or self.progress.step} of {self.total_steps}. "
            f"Lower train.lr (now {self.config.train.lr:g}) or lengthen the warm-up."
        )

    # -- what is written -----------------------------------------------------------------------

    def write_training_metrics(self) -> None:
        """A line with the mean loss since the last one."""
        self.read_losses()
        losses, self.progress.losses = self.progress.losses, []
        if losses:
            if time.monotonic() - self._told >= LINE_SECONDS:
                self._told = time.monotonic()
                where = f"epoch {self.epoch:<6g} step {self.progress.step}/{self.total_steps}"
                self.log.info("%s  training loss %.4f", where, sum(losses) / len(losses))
            self.record(
                split="train",
                loss=sum(losses) / len(losses),
                learning_rate=self.optimiser.learning_rate(self.progress.step - 1),
                gradient_norm=self.progress.gradient_norm,
                seconds=round(self.progress.train_seconds, 3),
            )

    def record(self, **values: Any) -> None:
        """A line of metrics.jsonl, and to whoever watches."""
        if not self.ranks.first:
            return
        line = {"step": self.progress.step, "epoch": self.epoch} | values
        self.folder.append_metrics(line)
        for sink in self.sinks:
            sink.log(line)

    def note(self, metrics: dict[str, float]) -> bool:
        """Note an evaluation, and say whether it is the one to be selected so far."""
        progress = self.progress
        progress.last, progress.evaluated = metrics, progress.step
        if self.config.train.select == "best" and progress.best is not None:
            name = self.data.metrics[0]
            if merit(name, metrics[name]) <= merit(name, progress.best["metrics"][name]):
                return False
        progress.best = {"step": progress.step, "epoch": self.epoch, "metrics": metrics}
        if self.data.test is not None and self.config.train.select == "best":
            parameters = self.optimiser.parameters.items()
            self.best = {name: one.detach().to("cpu", copy=True) for name, one in parameters}
        return True

    @contextmanager
    def selected(self) -> Iterator[None]:
        """Within this context the parameters are those of the selected evaluation."""
        if self.best is None:  # they are by themselves
            yield
            return
        parameters = self.optimiser.parameters
        now = {name: one.detach().clone() for name, one in parameters.items()}
        with torch.no_grad():
            try:
                for name, tensor in self.best.items():
                    parameters[name].copy_(tensor)
                yield
            finally:
                for name, tensor in now.items():
                    parameters[name].copy_(tensor)

    def write_adapter(self) -> None:
        """Write what is trained, as it is now."""
        if not self.ranks.first:
            return
        self.folder.fence()
        self.folder.adapter.mkdir(exist_ok=True)
        for file, content in method(self.config.method).files(self.backbone, self.config).items():
            files.write(self.folder.adapter / file, content)

    def write_predictions(self) -> None:
        """Keep what the last evaluation said of each example."""
        if self.ranks.first and self.said is not None:
            self.folder.fence()
            predictions.write(self.folder.predictions, self.said)

    def heartbeat(self, *, now: bool = False) -> None:
        """Say in the status that the run is alive, every few seconds, and see whether it may go on.

        What cannot be said now is said the next time: it is not worth the run.

        Raises:
            Fenced: if another process has taken the run over.
            OSError: if the disk is full.
        """
        if not now and time.monotonic() - self._beat < HEARTBEAT_SECONDS:
            return
        self._beat = time.monotonic()
        try:
            self._set_status("running")
            self.cancelled = self.folder.cancel_requested
            self._unsaid = False
        except OSError as error:
            if files.is_disk_full(error):
                raise
            if not self._unsaid:
                self.log.warning("The status cannot be written for now (%s).", error)
            self._unsaid = True

    def _set_status(self, state: State, **details: Any) -> None:
        if self.ranks.first:
            self.folder.set_status(state, **details, **self._position())

    @property
    def _wall_seconds(self) -> float:
        return self.progress.wall_seconds + time.monotonic() - self._begun

    def _position(self) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "total_steps": self.total_steps,
            "epoch": self.epoch,
            "seconds": round(self._wall_seconds, 1),
            "attempt": self.attempt,
            "pack": (self.progress.together or "").partition(":")[0] or None,
        }

    # -- beginning and end ---------------------------------------------------------------------

    def save(self, together: str | None = None) -> None:
        """Write a checkpoint.

        Args:
            together: names the moment, if other runs write theirs as well.
        """
        self.read_losses()
        if self.ranks.first:
            self.folder.fence()
        began = time.monotonic()
        self.progress.wall_seconds += began - self._begun
        self._begun = began
        self.progress.peak_memory = max(self.progress.peak_memory, peak_memory(self.device))
        self.progress.together = together
        if self.ranks.first:
            self.progress.metrics_size = self.folder.metrics_size()
            tensors, state = self.optimiser.state(), asdict(self.progress)
            tensors |= {BEST + name: tensor for name, tensor in (self.best or {}).items()}
            checkpoint.save(self.folder.checkpoint, self.progress.step, tensors, state)
        self.saved_step = self.progress.step
        self._saved = time.monotonic()
        self._save_seconds = self._saved - began

    def resume(self, together: str | None = None) -> bool:
        """Go on from a checkpoint, if there is one; metrics after it are cut off.

        Args:
            together: the moment to go on from; None is that of the newest checkpoint.
        """
        found = checkpoint.load(self.folder.checkpoint, together)
        if found is not None:
            tensors, state = found
            self.optimiser.load(tensors)
            best = {n.removeprefix(BEST): t for n, t in tensors.items() if n.startswith(BEST)}
            self.best = best or None
            self.progress = Progress(**state)
            self.saved_step = self.progress.step
            if self.progress.best is not None and self.progress.best["step"] == self.saved_step:
                self.write_adapter()  # the process may have been killed before it could
        if self.ranks.first:
            self.folder.cut_metrics(self.progress.metrics_size)
        self.heartbeat(now=True)
        return found is not None

    def finish(self, scores: Scores | None = None) -> dict[str, Any]:
        """Write the result: the run is done.

        Args:
            scores: of the texts that it has written.
        """
        progress = self.progress
        best = progress.best
        assert best is not None
        counts = parameter_counts(self.backbone, self.config.method)
        written = {} if scores is None else scores.values
        missing = {} if scores is None else {"missing": scores.missing}
        speed: dict[str, float] = {}
        if progress.decoded:
            speed["decoding_seconds"] = round(progress.decoding_seconds, 3)
            speed["sources_per_second"] = round(progress.decoded / progress.decoding_seconds, 2)
        labels = {} if self.data.labels is None else {"labels": self.data.labels}
        result = {
            "metrics": best["metrics"] | written,
            "last_metrics": progress.last,
            "best_epoch": best["epoch"],
            "best_step": best["step"],
            "steps": progress.step,
            "trainable_parameters": counts[self.config.method] + counts["head"],
            "total_parameters": counts["total"],
            "wall_seconds": round(self._wall_seconds, 3),
            "train_seconds": round(progress.train_seconds, 3),
            "tokens_per_second": round(progress.tokens / max(progress.train_seconds, 1e-9), 1),
            "peak_memory_bytes": max(progress.peak_memory, peak_memory(self.device)),
            "backbone": self.backbone.weights,
            **labels,
            **speed,
            **missing,
        }
        if self.ranks.first:
            self.folder.finish(result, **self._position())
        self._end("done", result)
        return result

    def preempt(self, state: State = "preempted", *, save: bool = True) -> None:
        """Leave: the same command goes on from here or, unless it is saved, from the checkpoint.

        Args:
            state: `preempted`, or `cancelled` if that was asked for.
            save: write a checkpoint first.
        """
        if save:
            self.save()
        self._set_status(state)
        self._end(state)

    def abandon(self) -> None:
        """Leave the run to the process that has taken it over, and write nothing more."""
        self.log.warning("Another process has taken this run over; this one leaves it.")
        self.state = "busy"

    def postpone(self, reason: str) -> None:
        """Leave without a word more than there is room for: the run goes on from its newest
        checkpoint, elsewhere or later."""
        self.reason = reason
        self.log.error("preempted: %s", reason)
        with suppress(OSError, Fenced):
            self._set_status("preempted", reason=reason)
        self._end("preempted")

    def fail(self, reason: str, error: Exception | None = None) -> None:
        """Give up; everything written so far stays."""
        self.reason = reason
        self.log.error("failed: %s", reason, exc_info=error)
        with suppress(OSError, Fenced):  # what cannot be written may be the reason
            self._set_status("failed", reason=reason)
        self._end("failed")

    def _end(self, state: State, result: dict[str, Any] | None = None) -> None:
        self.state = state
        for sink in self.sinks:
            sink.finish(state, result)
