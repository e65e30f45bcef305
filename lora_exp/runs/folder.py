"""The run folder: everything that is known of one run, and the only place where it is known."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from lora_exp.errors import UserError
from lora_exp.runs import files
from lora_exp.runs.config import Config, from_mapping, to_yaml

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a run's `adapter/`."""
State = Literal["queued", "running", "done", "failed", "preempted", "cancelled"]


class RunBusy(UserError):
    """Another process trains this run at the moment."""


class RunFolder:
    """`outputs/runs/<slug>-<signature>/`; the files and when they are written:

    ============== ============================================================ ====================
    config.yaml    the whole resolved config                                    once, first
    run.json       signature, group, command, code, packages, host              once
    status.json    state, epoch, step, heartbeat, attempt, reason               replaced
    metrics.jsonl  one JSON object a line: step, epoch, split, values           appended
    result.json    the result; its presence means done                          once
    adapter/       every trained tensor, in the form that PEFT opens            at each new best
    checkpoint/    all that an exact resume needs                               periodically
    log.txt        the log                                                      appended
    ============== ============================================================ ====================
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.adapter = path / "adapter"
        self.checkpoint = path / "checkpoint"
        self.metrics_file = path / "metrics.jsonl"
        self.log = path / "log.txt"

    @property
    def signature(self) -> str:
        """The last part of the folder's name."""
        return self.name.rsplit("-", 1)[-1]

    def create(self, config: Config, provenance: dict[str, Any]) -> None:
        """Make the folder of a run that is to start or to be queued; one that exists stays."""
        self.path.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(self.path)
        if not (self.path / "config.yaml").exists():
            files.write(self.path / "config.yaml", to_yaml(config))
        if not (self.path / "run.json").exists():
            files.write_json(self.path / "run.json", provenance)

    @property
    def config(self) -> Config:
        """The config that the run was made with."""
        return from_mapping(OmegaConf.load(self.path / "config.yaml"))

    @property
    def provenance(self) -> dict[str, Any]:
        """`run.json`, empty where it is missing."""
        return files.read_json(self.path / "run.json") or {}

    @property
    def status(self) -> dict[str, Any]:
        """`status.json`; a valid result beats any state written there."""
        status = self._written_status or {"state": "queued", "attempt": 0}
        return status | {"state": "done"} if self.result is not None else status

    @property
    def has_status(self) -> bool:
        """It has been queued, or trained."""
        return (self.path / "status.json").exists()

    @property
    def _written_status(self) -> dict[str, Any] | None:
        try:
            return files.read_json(self.path / "status.json")
        except ValueError:  # empty, after a loss of power
            return None

    @property
    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None while the run is not done."""
        return files.read_json(self.path / "result.json")

    def set_status(self, state: State, **details: Any) -> None:
        """Replace the status: `attempt`, `step`, `epoch`, `reason` and the like in `details`."""
        status = {
            "state": state,
            "heartbeat": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **details,
        }
        files.write_json(self.path / "status.json", status, durable=False)  # a dozen for each run

    def finish(self, result: dict[str, Any], **details: Any) -> None:
        """Write the result: from now on the run is done, and needs no checkpoint any more."""
        files.write_json(self.path / "result.json", result)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        self.set_status("done", **details)

    def settle(self) -> None:
        """Do what is left to do if a process was killed right after it wrote the result."""
        written = self._written_status or {}
        if self.result is not None and written.get("state") != "done":
            with suppress(UserError), self.lock():  # or that process is just about to
                files.remove_temporaries(self.path)
                shutil.rmtree(self.checkpoint, ignore_errors=True)
                files.write_json(self.path / "status.json", written | {"state": "done"})

    def supersede(self) -> Path:
        """Move a finished run out of the way, to be trained again; nothing of it is lost.

        Returns:
            Where it is now.
        """
        kept = self._superseded / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(kept)
        return kept

    @property
    def watched_as(self) -> str:
        """The run's identity for those who watch: another one for each time it is trained again."""
        times = len(list(self._superseded.glob(f"*-{self.signature}-*")))
        return f"{self.signature}-{times + 1}" if times else self.signature

    @property
    def _superseded(self) -> Path:
        return self.path.parent.parent / "superseded"

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a crash cut short is left out."""
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    yield json.loads(line)

    def metrics_size(self) -> int:
        """Length of metrics.jsonl in bytes, once all of it is safely on disk."""
        with self.metrics_file.open("a") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut_metrics(self, size: int) -> None:
        """Cut metrics.jsonl back to the length it had at a checkpoint, so a step stands once."""
        with self.metrics_file.open("a") as file:
            file.truncate(size)

    def check_writable(self) -> None:
        """See, before anything expensive starts, whether the run can be written down.

        Raises:
            UserError: if the outputs folder is none, or belongs to somebody else.
        """
        outputs = self.path.parent.parent
        there = next(folder for folder in (outputs, *outputs.parents) if folder.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(f"outputs={outputs}: {there} is not a folder that can be written to.")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: no second process of this machine trains it meanwhile.

        The lock goes with the process, however it ends.

        Raises:
            RunBusy: if another process holds it.
            UserError: if nothing can be written there.
        """
        path = self.path.parent.parent / "locks" / self.signature
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written to ({error.strerror}).") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                status = self.status
                who = (
                    f"process {status['pid']} on {status['host']}" if "pid" in status else "another"
                )
                raise RunBusy(
                    f"{self.path}: this run is being trained by {who}. Wait for it, or stop it."
                ) from None
            yield
