"""The model of a finished run, with what was trained in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.errors import UserError
from lora_exp.runs.config import Config, ModelConfig
from lora_exp.runs.folder import ADAPTER_WEIGHTS, RunFolder
from lora_exp.runs.store import find_run

if TYPE_CHECKING:
    from torch import Tensor

    from lora_exp.models import Backbone


def finished(outputs: Path, wanted: str) -> RunFolder:
    """A run that is done, with its adapter.

    Args:
        outputs: the folder that holds the runs.
        wanted: the run, as in `find_run`.

    Raises:
        UserError: if there is no such run, or it is not done.
    """
    run = find_run(outputs, wanted)
    if run.result is None:
        command = run.provenance.get("command")
        more = f" What started it goes on with it: {command}" if command else ""
        raise UserError(f"{run.path}: this run is {run.status['state']}, not done.{more}")
    if not (run.adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{run.adapter}: there is no {ADAPTER_WEIGHTS} in it.")
    return run


def restore(run: RunFolder, backbone: str | Path | None = None) -> Backbone:
    """The model of a run as its best epoch left it, for transformers' own batches, on the CPU.

    Classes have their names in its config.

    Args:
        run: that is done.
        backbone: folder or hub id of the pre-trained model, if it is no longer where it was.

    Raises:
        UserError: if the backbone cannot be found or is another one, or the adapter is damaged.
    """
    from lora_exp.lora import AdapterError

    config = run.config
    # The dropouts are the training's; a start is overwritten.
    model = replace(config.model, dropout=None, head_dropout=None, init_from=None)
    if backbone is not None:
        model = replace(model, name_or_path=str(backbone), revision=None)
    config = replace(config, model=model)
    kinds = {"lora": _with_lora, "prefix": _with_front, "prompt": _with_front}
    try:
        restored = kinds.get(config.method, _with_tensors)(run, config)
    except AdapterError as error:
        text = str(error) if str(run.adapter) in str(error) else f"{run.adapter}: {error}"
        raise UserError(text) from error
    names = (run.result or {}).get("labels") or config.task.labels
    if names and not restored.writes:
        restored.model.config.id2label = dict(enumerate(names))
        restored.model.config.label2id = {name: number for number, name in enumerate(names)}
    return restored


def outputs_of(model: ModelConfig, tensors: Mapping[str, Tensor]) -> int | None:
    """How many outputs the head among the tensors has, or None if there is none.

    A head's last layer is what changes its shape with the number of labels.
    """
    import torch
    import transformers

    from lora_exp import models

    shapes: list[dict[str, torch.Size]] = []
    for outputs in (2, 3):
        config = models.load_config(model, outputs)
        with torch.device("meta"):
            made = transformers.AutoModelForSequenceClassification.from_config(config)
        shapes.append({name: value.shape for name, value in made.named_parameters()})
    last = [name for name, shape in shapes[0].items() if shape != shapes[1][name]]
    for name, value in tensors.items():
        if value.ndim and any(f".{name}".endswith(f".{one}") for one in last):
            return len(value)
    return None


# -- by what was trained ---------------------------------------------------------------------------


def _with_lora(run: RunFolder, config: Config) -> Backbone:
    from lora_exp import lora, methods

    adapter = lora.read(run.adapter)
    backbone = _backbone(run, config, adapter.others)
    if config.lora.init == "pissa":  # in its file the weights are those before the start
        lora.attach(backbone.model, adapter)
    else:  # for the slices of fused layers, which PEFT's form does not have
        methods.attach(backbone, config)
        lora.load(backbone.model, adapter)
    return backbone


def _with_front(run: RunFolder, config: Config) -> Backbone:
    from lora_exp import methods
    from lora_exp.methods import virtual

    kept, head = virtual.read(run.adapter)
    backbone = _backbone(run, config, head)
    # What made the prefix in training is not kept.
    methods.attach(backbone, replace(config, prefix=replace(config.prefix, hidden=None)))
    try:
        virtual.restore(backbone, config.method, kept)
    except UserError as error:
        raise UserError(f"{run.adapter / ADAPTER_WEIGHTS}: {error}") from error
    _put(run, config, backbone, head)
    return backbone


def _with_tensors(run: RunFolder, config: Config) -> Backbone:
    from lora_exp import methods
    from lora_exp.methods.full import read

    tensors = read(run.adapter)
    backbone = _backbone(run, config, tensors)
    methods.attach(backbone, config)
    _put(run, config, backbone, tensors)
    return backbone


def _backbone(run: RunFolder, config: Config, tensors: Mapping[str, Tensor]) -> Backbone:
    """The pre-trained model that a run was trained on, with a head like the one among the tensors.

    Raises:
        UserError: if it cannot be found, or its weights are not those.
    """
    from lora_exp import models

    model = config.model
    try:
        writes = config.task.kind == "generation"
        backbone = models.load(model, None if writes else outputs_of(model, tensors) or 2)
    except UserError as error:
        raise UserError(
            f"{error}\nThat is the backbone of {run.name}. If it lies elsewhere now, say where: "
            "--backbone DIR, or backbone=DIR in Python."
        ) from error
    expected = (run.result or {}).get("backbone")
    if config.method != "full" and expected not in (None, backbone.weights):
        raise UserError(
            f"{run.path}: was trained on a backbone whose weights are not those of "
            f"{model.name_or_path}. Give its own: --backbone DIR, or backbone=DIR in Python."
        )
    return backbone


def _put(run: RunFolder, config: Config, backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    file = run.adapter / ADAPTER_WEIGHTS
    try:
        missing = backbone.model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # of another shape
        raise UserError(f"{file}: {error}") from error
    if missing.unexpected_keys:
        name = missing.unexpected_keys[0]
        raise UserError(f"{file}: {config.model.name_or_path} has no tensor {name}.")
