"""A job: from a config to a finished run folder."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp import console
from lora_exp.errors import RunFailed
from lora_exp.runs.config import Config, with_absolute_paths
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.provenance import provenance
from lora_exp.runs.signature import group, signature
from lora_exp.runs.store import folder_of

if TYPE_CHECKING:
    import torch

    from lora_exp.models import Backbone
    from lora_exp.train.batches import Batch
    from lora_exp.train.run import Data

log = logging.getLogger("lora_exp")


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
    from lora_exp import init_from, models, tasks

    config = init_from.resolve(with_absolute_paths(config))
    prints = {
        "data": tasks.fingerprint(config.task),
        "backbone": models.fingerprint(config.model),
        "start": init_from.fingerprint(config.model),
    }
    identity, family = signature(config, **prints), group(config, **prints)
    folder = folder_of(Path(config.outputs), config, identity)
    if folder.result is not None and not config.rerun:
        return _done(folder)
    folder.check_writable()

    from lora_exp.train.device import choose_device, device_name, reset_peak_memory

    device = choose_device(config)
    reset_peak_memory(device)
    backbone, data = prepare(config, device)
    record = provenance(
        signature=identity, group=family, overrides=overrides, gpu=device_name(device)
    )
    with folder.lock():
        if folder.result is not None and not config.rerun:
            return _done(folder)  # by another process, meanwhile
        if folder.result is not None:
            log.info("The former result is kept in %s.", console.shown(folder.supersede()))
        folder.create(config, record)
        with console.also_to(folder.log):
            return _train(config, folder, backbone, data, record)


def prepare(config: Config, device: torch.device) -> tuple[Backbone, Data]:
    """The model with its method on the device, and the tokenised data.

    Raises:
        UserError: if either is not as it should be.
    """
    import torch

    from lora_exp import init_from, methods, models, tasks
    from lora_exp.tasks.metrics import choose_metrics
    from lora_exp.train.batches import encode
    from lora_exp.train.run import Data

    examples = tasks.load(config.task)
    metrics = choose_metrics(config.task.metrics, examples)
    backbone = models.load(config.model, examples.outputs)
    longest = min(config.train.max_length, backbone.longest)
    if longest < config.train.max_length:
        log.info("train.max_length: the model reads %d tokens at most.", longest)
    methods.attach(backbone, config)
    init_from.start(backbone, config)
    torch.nn.Module.to(backbone.model, device)  # transformers' own wrapper hides the type
    set_precision(backbone, config.train.precision)
    data = Data(
        train=encode(backbone.tokenizer, examples.train, longest),
        validation={
            name: encode(backbone.tokenizer, split, longest)
            for name, split in examples.validation.items()
        },
        metrics=metrics,
    )
    return backbone, data


def forward_of(backbone: Backbone, precision: str) -> Callable[[Batch], torch.Tensor]:
    """How batches go through the model: flat where its architecture can, padded elsewhere."""
    import torch

    from lora_exp.train import flat, padded
    from lora_exp.train.device import make_deterministic

    model = backbone.model
    can_be_flat = model.config.model_type in flat.FAMILIES
    if can_be_flat:
        model.set_attn_implementation(flat.ATTENTION)
    make_deterministic(model.device, strict=can_be_flat)
    logits = flat.logits if can_be_flat else padded.logits

    def forward(batch: Batch) -> torch.Tensor:
        lower = precision == "bf16"
        with torch.autocast(model.device.type, torch.bfloat16) if lower else nullcontext():
            return logits(model, batch)

    return forward


def set_precision(backbone: Backbone, precision: str) -> None:
    """For bf16, keep frozen matrices in bf16; what is trained, and every vector, stays in fp32."""
    import torch

    if precision == "bf16":
        for parameter in backbone.model.parameters():
            if parameter.ndim > 1 and not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)


def _done(folder: RunFolder) -> dict[str, Any]:
    folder.settle()
    log.info("%s is done; rerun=true trains it again.", console.shown(folder.path))
    result = folder.result
    assert result is not None
    return result


def _train(
    config: Config, folder: RunFolder, backbone: Backbone, data: Data, record: dict[str, Any]
) -> dict[str, Any]:
    from lora_exp import track
    from lora_exp.methods import parameter_counts
    from lora_exp.train.interruption import Interruption
    from lora_exp.train.loop import train
    from lora_exp.train.run import Run

    before = folder.status
    attempt = before.get("attempt", 0) + 1
    folder.set_status("running", attempt=attempt)
    if before["state"] == "failed":
        log.info("The last attempt failed: %s", before.get("reason"))
    log.info("%s", console.shown(folder.path))
    log.info("%s", table(parameter_counts(backbone, config.method), config.method))
    if attempt > 1:
        commit = (record["git"] or {}).get("commit", "no commit")
        log.info("attempt %d: %s, %s, %s", attempt, platform.node(), record["gpu"] or "CPU", commit)
    info = track.RunInfo(
        signature=folder.watched_as,
        group=record["group"],
        name=folder.name,
        config=asdict(config),
        outputs=Path(config.outputs),
    )
    sinks = track.sinks(config.tracker, info)
    run = Run(
        config=config,
        folder=folder,
        backbone=backbone,
        forward=forward_of(backbone, config.train.precision),
        data=data,
        sinks=sinks,
        attempt=attempt,
    )
    with Interruption() as stop:
        try:
            train([run], stop)
        except KeyboardInterrupt:
            run.preempt(save=False)
        except Exception as error:
            run.fail(_reason(error), error)
    result = folder.result
    for sink in sinks:
        sink.finish(run.state, (result or {}).get("metrics", {}))
    if run.state == "preempted":
        assert stop.requested is not None
        log.info("%s: the same command goes on from step %d.", stop.requested.name, run.saved_step)
        raise SystemExit(128 + stop.requested)
    if result is None:
        raise RunFailed(f"{folder.path}: {run.reason}")
    return result


def _reason(error: Exception) -> str:
    """What went wrong, and what to do where that is known."""
    import torch

    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        reason += " Lower train.micro_batch_size; the update keeps its train.batch_size."
    return reason


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
