"""Adapters for other software and from it: the verbs `export` and `import`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from lora_exp.errors import UserError, nearest
from lora_exp.finished.restored import finished, outputs_of, restore
from lora_exp.runs import files
from lora_exp.runs.config import Config, ModelConfig
from lora_exp.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from lora_exp.lora import Adapter
    from lora_exp.models import Backbone


def export(outputs: Path, wanted: str, form: str, out: Path, backbone: str | None = None) -> str:
    """Write a run's adapter in a new folder, in the form that other software opens.

    Args:
        outputs: the folder that holds the runs.
        wanted: the run, as in `find_run`.
        form: `peft`, `loralib` or `merged` (a plain model).
        out: the folder.
        backbone: where the pre-trained model is, if it is no longer where it was.

    Returns:
        What was written, for the user.

    Raises:
        UserError: if there is no such run, form or folder, or the run has nothing of that form.
    """
    forms: dict[str, Callable[[RunFolder, Config, Backbone, Path], str]]
    forms = {"peft": _as_peft, "loralib": _as_loralib, "merged": _as_merged}
    if form not in forms:
        raise UserError(f"--to {form}: {nearest(form, forms, kind='forms')}")
    run = finished(outputs, wanted)
    config = run.config
    if config.method in ("prefix", "prompt") and form == "peft":
        with files.new_folder(out) as folder:  # the run's own files are of that form
            shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
        return f"{out}: PeftModel.from_pretrained opens it."
    if config.method in ("adapter", "prefix", "prompt"):
        own = f"the run's own files: {run.adapter}" if config.method == "adapter" else "--to peft"
        what = f"what method={config.method} adds to a model"
        raise UserError(f"--to {form}: {what} has no such form. Take {own}.")
    if form != "merged" and config.method != "lora":
        raise UserError(
            f"--to {form}: a run with method={config.method} has no A and B to be written so. "
            "Take --to merged: the whole model as it was trained."
        )
    files.check_new(out)
    restored = restore(run, backbone)
    with files.new_folder(out) as folder:
        return f"{out}: {forms[form](run, config, restored, folder)}"


def take_in(
    source: Path,
    model: str,
    out: Path,
    conf: Path,
    *,
    alpha: float | None = None,
    slices: Sequence[str] = (),
    any_backbone: bool = False,
) -> str:
    """Write an adapter of PEFT or loralib as a folder like those of runs.

    Args:
        source: a folder of PEFT, or a state dictionary of loralib.
        model: its backbone: what `model.name_or_path` takes, or the name of a file in conf/model.
        out: the folder.
        conf: the folder of the config files.
        alpha: of loralib's file, which does not hold it.
        slices: of fused projections, which loralib's file is for.
        any_backbone: even if it was trained on other weights.

    Returns:
        What was written, for the user.

    Raises:
        UserError: if there is no such file, model or folder, or they do not fit.
    """
    from lora_exp import lora

    files.check_new(out)
    try:
        adapter = lora.read(source, alpha=alpha)
        config, backbone = _named_backbone(model, conf, adapter.others)
        adapter = adapter.named_for(backbone.model)
        kept, note = _without_foreign_heads(adapter, backbone)
        modules, bias = _trained_besides(kept, backbone)
        layers = lora.attach(backbone.model, kept, slices=slices, any_backbone=any_backbone)
        head = backbone.head_modules if backbone.head & kept.others.keys() else set()
        contents = lora.peft_files(
            backbone.model,
            base_model=config.name_or_path,
            modules_to_save=sorted(modules | head),
            bias=bias,
            task_type="SEQ_CLS" if head else None,
            backbone=backbone.weights or None,
        )
    except lora.OtherBackbone as error:
        hint = "\nWith --any-backbone it is written all the same."
        raise UserError(_naming(source, error) + hint) from error
    except lora.AdapterError as error:
        raise UserError(_naming(source, error)) from error
    with files.new_folder(out) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    labels = f"a head of {backbone.model.num_labels} labels" if head else "no head"
    return f"{out}: {len(layers)} layers with LoRA, {labels}.{note}"


def _naming(source: Path, error: Exception) -> str:
    return str(error) if str(source) in str(error) else f"{source}: {error}"


# -- out of a run ----------------------------------------------------------------------------------


def _as_peft(run: RunFolder, config: Config, backbone: Backbone, folder: Path) -> str:
    from lora_exp import methods

    for name, content in methods.method("lora").files(backbone, config).items():
        (folder / name).write_bytes(content)
    return "PeftModel.from_pretrained opens it."


def _as_loralib(run: RunFolder, config: Config, backbone: Backbone, folder: Path) -> str:
    import torch

    from lora_exp import lora

    model = backbone.model
    try:
        tensors, alpha = lora.loralib_state_dict(
            model,
            modules_to_save=sorted(backbone.head_modules),
            bias=config.lora.bias,
        )
    except lora.AdapterError as error:
        raise UserError(f"--to loralib: {error}") from error
    torch.save(tensors, folder / "adapter.pt")
    return f"adapter.pt, a state dictionary for loralib's layers with lora_alpha={alpha:g}."


def _as_merged(run: RunFolder, config: Config, backbone: Backbone, folder: Path) -> str:
    from lora_exp import lora

    model = backbone.model
    try:
        state = lora.merged_state_dict(model)
    except lora.AdapterError as error:
        raise UserError(f"--to merged: {error}") from error
    model.save_pretrained(folder, state_dict=state)
    backbone.tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # safetensors hides them from other users
        shutil.copymode(folder / "config.json", file)
    kind = "CausalLM" if backbone.writes else "SequenceClassification"
    return f"AutoModelFor{kind} and AutoTokenizer open it."


# -- into a folder ---------------------------------------------------------------------------------


def _named_backbone(
    model: str, conf: Path, tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, Backbone]:
    """The model that the user named, with a head of the size that the tensors have."""
    from lora_exp import models

    known = {path.stem: path for path in (conf / "model").glob("*.yaml")}
    name = model
    if model in known:
        name = str(OmegaConf.select(OmegaConf.load(known[model]), "name_or_path"))
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser().absolute())
    config = ModelConfig(name)
    try:
        return config, models.load(config, outputs_of(config, tensors) or 2)
    except UserError as error:
        text = str(error).replace("model.name_or_path=", "--model ")
        if name == model and not set(model) & set("/:"):  # perhaps a misspelt name of ours
            text += f"\n{nearest(model, known, kind='models')}"
        raise UserError(text) from error


def _without_foreign_heads(adapter: Adapter, backbone: Backbone) -> tuple[Adapter, str]:
    """The adapter without a head that is not this model's, and a sentence about it."""
    state, prefix = backbone.model.state_dict(), f"{backbone.model.base_model_prefix}."
    own = backbone.head & adapter.others.keys()
    fits = own == backbone.head and all(
        adapter.others[name].shape == state[name].shape for name in own
    )
    foreign = {
        name
        for name in adapter.others
        if (not name.startswith(prefix) and name not in state) or (name in own and not fits)
    }
    if not foreign:
        return adapter, ""
    kept = {name: value for name, value in adapter.others.items() if name not in foreign}
    some = ", ".join(sorted(foreign)[:3]) + (", ..." if len(foreign) > 3 else "")
    return replace(adapter, others=kept), f" Left out, as not of this model's head: {some}."


def _trained_besides(adapter: Adapter, backbone: Backbone) -> tuple[set[str], str]:
    """The modules of the pre-trained part of which the adapter changes more than a bias, and whose
    biases it changes."""
    state = backbone.model.state_dict()
    changed = {
        name
        for name, value in adapter.others.items()
        if name in state and name not in backbone.head and state[name].shape == value.shape
        if not state[name].equal(value.to(state[name]))
    }
    modules = {name.rpartition(".")[0] for name in changed if not name.endswith(".bias")}
    biased = {name.rpartition(".")[0] for name in changed} - modules
    if not biased:
        return modules, "none"
    return modules, "lora_only" if biased <= adapter.updates.keys() else "all"
