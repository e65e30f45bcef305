"""The run folder: everything that is known of one run, and the only place where it is known."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lora_exp.errors import UserError
from lora_exp.runs import files
from lora_exp.runs.config import Config
from lora_exp.runs.lease import Lease, Owner, RunBusy, hold
from lora_exp.runs.shapes import CHECKS, is_line, is_text
from lora_exp.runs.signature import signature
from lora_exp.runs.values import from_yaml, to_yaml

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a run's `adapter/`."""
PROGRESS = ("attempt", "step", "total_steps", "epoch", "seconds", "pack")
"""Of the status: how far the run has come."""
CHECKPOINT = re.compile(r"\d+-step-(\d+)-[0-9a-f]+\.safetensors")
"""The name of a file in `checkpoint/`: its number, the updates made, its checksum."""
State = Literal["queued", "running", "done", "failed", "preempted", "cancelled"]
PRINTS = ("data", "backbone", "start")
"""Of `run.json`, the fingerprints that its signature is made of."""
LOWER_IS_BETTER = ("perplexity",)
"""Of the metrics that decide the best epoch."""


def merit(metric: str, value: float) -> float:
    """A value of a metric, negated where less of it is better."""
    return -value if metric in LOWER_IS_BETTER else value


def main_metric(result: dict[str, Any]) -> float:
    """Of `result.json`, the metric that decides the best epoch."""
    return _main(result)[1]


def main_merit(result: dict[str, Any]) -> float:
    """Its `merit`: the more, the better the run."""
    return merit(*_main(result))


def _main(result: dict[str, Any]) -> tuple[str, float]:
    return next(item for item in result["metrics"].items() if item[0] != "loss")


class RunFolder:
    """`outputs/runs/<slug>-<signature>/`; the files and when they are written:

    ============== ============================================================ ====================
    config.yaml    the whole resolved config                                    once, first
    run.json       signature, group, command, code, packages, host, config      once
    code.patch     what was changed in the code since its commit, if anything   once
    status.json    state, epoch, step, heartbeat, attempt, reason               replaced
    metrics.jsonl  one JSON object a line: step, epoch, split, values           appended
    result.json    the result; its presence means done                          once
    adapter/       every trained tensor, in the form that PEFT opens            at each new best
    predictions/   what a classifier said of the first validation split         at each new best
    checkpoint/    all that an exact resume needs                               periodically
    generations/   what a language model wrote for the test split               at the end
    log.txt        the log                                                      appended
    cancel         somebody asks for an end without a result                    at any time
    ============== ============================================================ ====================
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.adapter = path / "adapter"
        self.checkpoint = path / "checkpoint"
        self.texts_file = path / "generations" / "test.jsonl"
        self.predictions = path / "predictions"
        self.metrics_file = path / "metrics.jsonl"
        self.log = path / "log.txt"
        self._cancel = path / "cancel"
        self._lease: Lease | None = None  # while this process holds the run

    @property
    def signature(self) -> str:
        """The last part of the folder's name."""
        return self.name.rsplit("-", 1)[-1]

    def create(
        self,
        config: Config,
        provenance: dict[str, Any],
        patch: Path | str = "",
        *,
        durable: bool = True,
    ) -> None:
        """Make the folder of a run that is to start or to be queued; one that exists stays, but for
        files that a loss of power has left empty.

        Args:
            config: of the run.
            provenance: the content of run.json, to which the config is added.
            patch: of the code, or a file that has it.
            durable: as in `files.write`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(self.path)
        if not _holds_something(self.path / "config.yaml"):
            files.write(self.path / "config.yaml", to_yaml(config), durable=durable)
        if not _holds_something(self.path / "run.json"):
            if isinstance(patch, Path):
                files.link(patch, self.path / "code.patch")
            elif patch:
                files.write(self.path / "code.patch", patch)
            whole = provenance | {"config": asdict(config)}
            files.write_json(self.path / "run.json", whole, durable=durable)

    @property
    def config(self) -> Config:
        """The config that the run was made with.

        Raises:
            UserError: if it is missing or damaged.
        """
        file = self.path / "config.yaml"
        try:
            return from_yaml(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            problem = "there is no such file"
        except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
            problem = f"it is damaged ({str(error).splitlines()[0]})"
        raise UserError(f"{file}: {problem}, so nobody knows what was to be trained.")

    @property
    def config_to_train(self) -> Config:
        """The config, if it is the one whose signature the folder's name has.

        Raises:
            UserError: if it is missing, damaged, or another one.
        """
        config = self.config
        content: dict[str, str] = self.provenance.get("content") or {}
        if {"data", "backbone"} <= content.keys():  # otherwise nobody can know
            prints = {name: content[name] for name in PRINTS if name in content}
            if signature(config, **prints) != self.signature:
                raise UserError(
                    f"{self.path / 'config.yaml'}: it was changed, or lora_exp's defaults were, "
                    f"and is not what the run was made with: {self.signature} is not its "
                    "signature. Undo that; or remove the file, and give the command that made the "
                    "run again, which writes it anew."
                )
        return config

    @property
    def provenance(self) -> dict[str, Any]:
        """`run.json`, empty where it is missing or damaged."""
        return self._read("run.json") or {}

    @property
    def status(self) -> dict[str, Any]:
        """`status.json`; that there is a result, or none, beats the state written there."""
        status = self._read("status.json") or {"state": "queued", "attempt": 0}
        if self.result is not None:
            return status | {"state": "done"}
        return status | {"state": "preempted"} if status["state"] == "done" else status

    @property
    def progress(self) -> dict[str, Any]:
        """What of the status stays true while nobody trains the run."""
        return {key: value for key, value in self.status.items() if key in PROGRESS}

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            value = files.read_json(self.path / name)
        except (ValueError, RecursionError):  # empty, after a loss of power
            return None
        return value if CHECKS[name](value) else None

    @property
    def saved_step(self) -> int:
        """That of the newest checkpoint, 0 where there is none."""
        names = sorted(path.name for path in self.checkpoint.glob("*"))
        steps = [found[1] for name in names if (found := CHECKPOINT.fullmatch(name))]
        return int(steps[-1]) if steps else 0

    @property
    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None while the run is not done.

        Raises:
            UserError: if it is damaged; it may be all that is left of the run.
        """
        file = self.path / "result.json"
        found = self._read(file.name)
        if found is None and file.exists():
            raise UserError(
                f"{file}: it is damaged. Bring it back from a copy; or remove it, and the run is "
                "trained again from its last checkpoint, if there is one."
            )
        return found

    def set_status(self, state: State, **details: Any) -> None:
        """Replace the status: `attempt`, `step`, `epoch`, `reason` and the like in `details`.

        Raises:
            Fenced: if another process has taken the run over.
        """
        self.fence()
        here = Owner.here()
        status = {
            "state": state,
            "heartbeat": time.time(),
            "host": here.host,
            "pid": here.pid,
            "job": here.job,
            **details,
        }
        files.write_json(self.path / "status.json", status, durable=False)  # a dozen for each run

    def finish(self, result: dict[str, Any], **details: Any) -> None:
        """Write the result: from now on the run is done, and needs no checkpoint any more.

        Raises:
            Fenced: if another process has taken the run over.
        """
        self.fence()
        files.write_json(self.path / "result.json", result)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        with suppress(OSError):  # `settle` does what cannot be done now
            self.set_status("done", **details)

    def settle(self) -> None:
        """Do what is left to do if a process got no further than to write the result."""
        written = self._read("status.json") or {}
        if self.result is not None and (written.get("state") != "done" or self.checkpoint.exists()):
            with suppress(UserError, OSError), self.lock():  # or that process is just about to
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

    @property
    def cancelled(self) -> bool:
        """It was cancelled, or somebody has asked for that."""
        return self.cancel_requested or self.status["state"] == "cancelled"

    @property
    def cancel_requested(self) -> bool:
        """Somebody has asked for the run's end."""
        return self._cancel.exists()

    def request_cancel(self) -> None:
        """Ask for the run's end: who trains it saves it and leaves it as `cancelled`."""
        self._cancel.touch()

    def withdraw_cancel(self) -> None:
        """The run may go on."""
        self._cancel.unlink(missing_ok=True)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl.

        Raises:
            Fenced: if another process has taken the run over.
        """
        self.fence()
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; one that is damaged, or cut short by a crash, is left out."""
        if self.metrics_file.exists():
            text = self.metrics_file.read_text(encoding="utf-8", errors="replace")
            for line in text.split("\n")[:-1]:
                with suppress(ValueError, RecursionError):
                    if is_line(values := json.loads(line)):
                        yield values

    def texts(self) -> Iterator[dict[str, Any]]:
        """What a language model wrote at the end: `source`, `output`, `references`, `group`."""
        if self.texts_file.exists():
            try:
                with self.texts_file.open(encoding="utf-8") as file:
                    for number, line in enumerate(file, 1):
                        if not is_text(text := json.loads(line)):
                            raise ValueError(f"line {number} is no text of a run")
                        yield text
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.texts_file}: it is damaged ({error}).") from error

    def metrics_size(self) -> int:
        """Length of metrics.jsonl in bytes, once all of it is safely on disk."""
        with self.metrics_file.open("a") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut_metrics(self, size: int) -> None:
        """Cut metrics.jsonl back to the length it had at a checkpoint, so a step stands once."""
        with self.metrics_file.open("a") as file:
            file.truncate(size)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: no second process trains it meanwhile, here or on another machine.

        Raises:
            RunBusy: if another process holds it.
            UserError: if nothing can be written there.
        """
        try:
            with hold(self.leases) as self._lease:
                yield
        except RunBusy as error:
            raise RunBusy(
                f"{self.path}: this run is being trained by {error}. Wait for it, or stop it."
            ) from None
        finally:
            self._lease = None

    @property
    def leases(self) -> Path:
        """Where it is known who holds the run."""
        return self.path.parent.parent / "leases" / self.signature

    def fence(self) -> None:
        """See, before something is written, that the run has not been taken over.

        Raises:
            Fenced: if it has.
        """
        if self._lease is not None:
            self._lease.check()


def check_writable(outputs: Path) -> None:
    """See, before anything expensive starts, whether runs can be written down.

    Args:
        outputs: the folder of all runs, which need not be there yet.

    Raises:
        UserError: if it is no folder, or belongs to somebody else.
    """
    whole = outputs.absolute()
    there = next(folder for folder in (whole, *whole.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"outputs={outputs}: {there} is not a folder that can be written to.")


def _holds_something(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0
