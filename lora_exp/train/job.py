"""A job: from a config to a finished run folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp import console
from lora_exp.errors import RunFailed, UserError
from lora_exp.runs.config import Config, with_absolute_paths
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.provenance import provenance
from lora_exp.runs.signature import group, signature, slug

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
        SystemExit: after a signal, with status 128 + its number; the run is saved and preempted.
    """
    from lora_exp import models, tasks

    config = with_absolute_paths(config)
    prints = {"data": tasks.fingerprint(config.task), "backbone": models.fingerprint(config.model)}
    identity, family = signature(config, **prints), group(config, **prints)
    folder = RunFolder(Path(config.outputs) / "runs" / f"{slug(config)}-{identity}")
    if folder.result is not None and not config.rerun:
        folder.settle()
        log.info("%s is done; rerun=true trains it again.", os.path.relpath(folder.path))
        return folder.result

    device = choose_device(config)
    backbone, data = prepare(config, device)
    gpu = device_name(device)
    record = provenance(signature=identity, group=family, overrides=overrides, gpu=gpu)
    if folder.result is not None:
        supersede(folder, Path(config.outputs))
    folder.create(config, record)
    with folder.lock(), console.also_to(folder.log):
        return _train(config, folder, backbone, data, record)


def prepare(config: Config, device: torch.device) -> tuple[Backbone, Data]:
    """The model with its method on the device, and the tokenised data.

    Raises:
        UserError: if either is not as it should be.
    """
    import torch

    from lora_exp import methods, models, tasks
    from lora_exp.tasks.metrics import choose_metrics
    from lora_exp.train.batches import encode
    from lora_exp.train.run import Data

    examples = tasks.load(config.task)
    backbone = models.load(config.model, examples.outputs)
    longest = min(config.train.max_length, positions(backbone))
    if longest < config.train.max_length:
        log.info("train.max_length: the model reads %d tokens at most.", longest)
    methods.attach(backbone, config)
    torch.nn.Module.to(backbone.model, device)  # transformers' own wrapper hides the type
    set_precision(backbone, config.train.precision)
    data = Data(
        train=encode(backbone.tokenizer, examples.train, longest),
        validation={
            name: encode(backbone.tokenizer, split, longest)
            for name, split in examples.validation.items()
        },
        metrics=choose_metrics(config.task.metrics, examples),
    )
    return backbone, data


def forward_of(backbone: Backbone, precision: str) -> Callable[[Batch], torch.Tensor]:
    """How batches go through the model: flat where its architecture can, padded elsewhere."""
    import torch

    from lora_exp.train import flat, padded

    model = backbone.model
    if model.config.model_type in flat.FAMILIES:
        model.set_attn_implementation(flat.ATTENTION)
        logits = flat.logits
    else:
        logits = padded.logits

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


def choose_device(config: Config) -> torch.device:
    """The device that `device` names.

    Raises:
        UserError: for `cuda` where there is none.
    """
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device=cuda: torch {torch.__version__} sees no GPU here. Use device=cpu, or install "
            "a CUDA build of torch and check that `nvidia-smi` lists the GPU."
        )
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    if use_gpu:  # the same run twice gives the same bits
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda" if use_gpu else "cpu")


def device_name(device: torch.device) -> str | None:
    """The GPU's name; None for a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def positions(backbone: Backbone) -> int:
    """The longest sequence, in tokens, that the backbone has positions for."""
    config = backbone.model.config
    limit = getattr(config, "max_position_embeddings", None) or 2**31
    from lora_exp.train.flat import FAMILIES

    family = FAMILIES.get(config.model_type)
    after_padding = family is not None and family.positions_after_padding
    return limit - (config.pad_token_id + 1 if after_padding else 0)


def supersede(folder: RunFolder, outputs: Path) -> None:
    """Move a finished run out of the way; nothing of it is lost."""
    kept = outputs / "superseded" / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder.path.rename(kept)
    log.info("The former result is kept in %s.", os.path.relpath(kept))


def _train(
    config: Config, folder: RunFolder, backbone: Backbone, data: Data, record: dict[str, Any]
) -> dict[str, Any]:
    from lora_exp import track
    from lora_exp.methods import parameter_counts
    from lora_exp.train.interruption import Interruption
    from lora_exp.train.loop import train
    from lora_exp.train.run import Run

    before = folder.status
    if before["state"] == "failed":
        log.info("The last attempt failed: %s", before.get("reason"))
    log.info("%s", os.path.relpath(folder.path))
    log.info("%s", table(parameter_counts(backbone, config.method), config.method))
    info = track.RunInfo(
        signature=record["signature"],
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
        attempt=before.get("attempt", 0) + 1,
    )
    with Interruption() as stop:
        try:
            train([run], stop)
        except KeyboardInterrupt:
            run.preempt(save=False)
        except Exception as error:
            run.fail(f"{type(error).__name__}: {error}")
            log.exception("The run failed.")
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
