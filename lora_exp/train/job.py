"""A job: from configs to finished run folders."""

from __future__ import annotations

import logging
import platform
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp import console
from lora_exp.errors import RunFailed, UserError
from lora_exp.runs import files
from lora_exp.runs.config import Config
from lora_exp.runs.folder import RunFolder, check_writable
from lora_exp.runs.lease import Fenced
from lora_exp.runs.provenance import provenance
from lora_exp.runs.signature import group, signature
from lora_exp.runs.store import folder_of
from lora_exp.runs.values import with_absolute_paths

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.train.interruption import Interruption
    from lora_exp.train.memory import Need
    from lora_exp.train.ranks import Ranks
    from lora_exp.train.run import Data, Run
    from lora_exp.train.workplace import Workplace

log = logging.getLogger("lora_exp")


@dataclass(frozen=True)
class Identity:
    """Which run a config describes."""

    config: Config
    """With absolute paths."""
    signature: str
    group: str
    """Shared by runs that differ in their seed alone."""
    content: dict[str, str]
    """Fingerprints of `data`, `backbone` and, if there is one, `start`."""
    folder: RunFolder


def identify(config: Config) -> Identity:
    """Which run this is, and where it lies.

    Raises:
        UserError: if data, model or start cannot be found.
    """
    from lora_exp import init_from, models, tasks

    config = init_from.resolve(with_absolute_paths(config))
    content = {
        "data": tasks.fingerprint(config.task),
        "backbone": models.fingerprint(config.model),
    }
    if (start := init_from.fingerprint(config.model)) is not None:
        content["start"] = start
    name = signature(config, **content)
    folder = folder_of(Path(config.outputs), config, name)
    return Identity(config, name, group(config, **content), content, folder)


def execute(config: Config, overrides: list[str]) -> dict[str, Any]:
    """Train one run, or go on with it, or show that it is done.

    Everything that can be wrong with config, data and model is found before the run folder is made.

    Args:
        config: checked.
        overrides: what the user gave, for the record.

    Returns:
        The result.

    Raises:
        UserError: for what the user can mend.
        RunFailed: if the run ends without a result.
        SystemExit: after a signal, with status 128 + its number; the run is preempted.
    """
    found = identify(config)
    config, folder = found.config, found.folder
    if folder.result is not None and not config.rerun:
        return _done(folder)
    check_writable(Path(config.outputs))
    before = folder.cancelled  # whoever gives the command wants it to go on

    from lora_exp.train import ranks

    processes = config.train.devices * config.train.nodes
    if config.train.devices > 1 and config.train.nodes == 1 and ranks.environment() is None:
        return _with_ranks(config, folder, overrides)

    from lora_exp.train.device import choose_device, device_name, reset_peak_memory
    from lora_exp.train.interruption import Interruption
    from lora_exp.train.workplace import Workplace

    place = ranks.environment() if processes > 1 else None
    device = choose_device(config.device, 0 if place is None else place["local"])
    reset_peak_memory(device)
    others = ranks.join(device, processes)
    workplace = Workplace(device)
    backbone, data = workplace.prepare(config)
    record, patch = provenance(
        signature=found.signature,
        group=found.group,
        overrides=overrides,
        gpu=device_name(device),
        content=found.content,
    )
    with files.told(folder.path), ExitStack() as stack:
        if others.first:
            stack.enter_context(folder.lock())
            if folder.result is not None and not config.rerun:
                return _done(folder)  # by another process, meanwhile
            if folder.cancelled and not before:
                folder.set_status("cancelled", **folder.progress)
                raise RunFailed(f"{folder.path}: it was cancelled.")
            if folder.result is not None:
                kept = console.shown(folder.supersede())
                log.info("The former result is kept in %s.", kept)
            folder.create(config, record, patch)
            _ = folder.config_to_train  # of a run that is there: what others will read
            folder.withdraw_cancel()
            stack.enter_context(console.also_to(folder.log))
        run = member(config, folder, workplace, backbone, data, "", others)
        if others.first:
            foretell(run)
        stop = stack.enter_context(Interruption())
        train_pack([run], stop)
    if run.state == "preempted" and stop.requested is not None:
        name, step = stop.requested.name, run.saved_step
        log.info("%s: the same command goes on from step %d.", name, step)
        raise SystemExit(128 + stop.requested)
    if run.state == "failed":
        raise RunFailed(f"{folder.path}: {run.reason}")
    if run.state != "done":
        told = {"busy": "another process has taken it over", "cancelled": "it was cancelled"}
        raise RunFailed(f"{folder.path}: {told.get(run.state, run.reason)}.")
    return folder.result or {}


def predict(config: Config) -> str:
    """What a run would train, and the memory it would take; nothing is written but cached tokens.

    Raises:
        UserError: for what the user can mend.
    """
    from lora_exp.methods import parameter_counts
    from lora_exp.train import memory
    from lora_exp.train.device import choose_device
    from lora_exp.train.run import Run
    from lora_exp.train.workplace import Workplace

    found = identify(config)
    workplace = Workplace(choose_device(config.device))
    backbone, data = workplace.prepare(found.config)
    shares = workplace.can_share(config, backbone)
    run = Run(found.config, found.folder, backbone, data, [], 1, shares=shares)
    takes = memory.need(run)
    state = found.folder.status["state"] if found.folder.path.exists() else "new"
    lines = [
        f"{found.folder.name}: {state}",
        table(parameter_counts(backbone, config.method), config.method),
        f"{run.total_steps:,} updates, {run.steps_per_epoch:,} an epoch",
        str(takes),
        f"free: {memory.free(run.device) / 2**20:,.0f} MiB",
        memory.advice(run, takes),
        f"runs like this one that train together: {memory.pack_size(run, takes)}"
        if shares
        else None,
        *(data.test.foretell() if data.test else ()),
    ]
    return "\n".join(line for line in lines if line)


def foretell(run: Run) -> Need | None:
    """Say how much memory the steps of a run will take; None if it does not suffice to try."""
    from lora_exp.train import memory
    from lora_exp.train.device import is_out_of_memory

    try:
        takes = memory.need(run)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        run.log.warning("Out of memory with two sequences; trying all the same.")
        return None
    run.log.info("%s", takes)
    if warning := memory.advice(run, takes):
        run.log.warning("%s", warning)
    return takes


def _with_ranks(config: Config, folder: RunFolder, overrides: list[str]) -> dict[str, Any]:
    """Train a run with several processes."""
    from lora_exp.train.ranks import launch

    status = launch(config, overrides)
    if status < 0:
        name = signal.Signals(-status).name
        raise RunFailed(
            f"{folder.path}: one of its processes was ended by {name}. The same command goes on "
            "from the last checkpoint."
        )
    if status == 1:
        raise RunFailed(f"{folder.path}: {folder.status.get('reason')}")
    if status:  # told by the first rank
        raise SystemExit(status)
    return folder.result or {}


def member(
    config: Config,
    folder: RunFolder,
    workplace: Workplace,
    backbone: Backbone,
    data: Data,
    name: str,
    ranks: Ranks | None,
) -> Run:
    """A run that is ready for a pack; `name` tells its lines from those of others."""
    from lora_exp import track
    from lora_exp.methods import parameter_counts
    from lora_exp.train.device import device_name
    from lora_exp.train.run import Run

    before, origin = folder.status, folder.provenance
    attempt = before.get("attempt", 0) + 1
    first = ranks is None or ranks.first
    run = Run(
        config=config,
        folder=folder,
        backbone=backbone,
        data=data,
        sinks=track.sinks(config.tracker, folder) if first else [],
        attempt=attempt,
        name=name,
        ranks=ranks,
        shares=workplace.can_share(config, backbone),
    )
    if first:
        folder.set_status("running", attempt=attempt)
        if before["state"] == "failed":
            run.log.info("The last attempt failed: %s", before.get("reason"))
        run.log.info("%s", console.shown(folder.path))
        run.log.info("%s", table(parameter_counts(backbone, config.method), config.method))
        for line in data.test.foretell() if data.test else ():
            run.log.warning("%s", line)
    if first and attempt > 1:
        commit = (origin.get("git") or {}).get("commit", "no commit")
        gpu = device_name(workplace.device) or "CPU"
        run.log.info("attempt %d: %s, %s, %s", attempt, platform.node(), gpu, commit)
    return run


def train_pack(
    runs: list[Run], stop: Interruption, more: Callable[[], Sequence[Run]] = lambda: ()
) -> None:
    """Train a pack to its end; each run of it is then done, failed or preempted."""
    from lora_exp.train.loop import train
    from lora_exp.train.pack import Pack

    pack = Pack(runs[0].config.train.precision)
    with console.progress() as bar:
        try:
            train(pack, runs, stop, bar, more)
        except KeyboardInterrupt:
            for run in pack.members:
                with suppress(Fenced):
                    run.preempt(save=False)
        except Exception as error:  # in what they share
            for run in pack.members:
                run.fail(reason(error), error)


def _done(folder: RunFolder) -> dict[str, Any]:
    folder.settle()
    log.info("%s is done; rerun=true trains it again.", console.shown(folder.path))
    result = folder.result
    assert result is not None
    return result


def reason(error: Exception) -> str:
    """What went wrong, as its status tells."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def table(counts: dict[str, int], method: str) -> str:
    """Trained parameters by part, as lines of text."""
    total = counts["total"]
    trained = counts[method] + counts["head"]
    rows = [
        (method, counts[method]),
        ("head", counts["head"]),
        ("trained", trained),
        ("frozen", total - trained),
    ]
    lines = [f"  {name:<8}{number:>15,}  {number / total:7.2%}" for name, number in rows]
    return "\n".join(["trained parameters by part", *lines])
