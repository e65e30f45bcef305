"""`model.init_from`: a run that starts from what another one, or other software, has trained."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.errors import UserError
from lora_exp.runs.config import Config, ModelConfig
from lora_exp.runs.folder import ADAPTER_CONFIG as CONFIG
from lora_exp.runs.folder import RunFolder, main_merit
from lora_exp.runs.store import find_run

if TYPE_CHECKING:
    from torch import Tensor

    from lora_exp.models import Backbone
    from lora_exp.runs.selector import Selector

log = logging.getLogger("lora_exp")
BEST = "best:"
"""Before a filter: the best of the runs that it means."""
ORIGINS = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
"""The method by PEFT's name of it."""


def resolve(config: Config) -> Config:
    """The same run with the folder or file that `model.init_from` stands for.

    Raises:
        UserError: if there is none, or it is a run that is not done.
    """
    name = config.model.init_from
    if name is None:
        return config
    if (selector := selector_of(config)) is not None:
        return _starting_from(config, _best(config, selector).adapter)
    path = Path(name).expanduser()
    if path.name.startswith("adapter_") and (path.parent / CONFIG).is_file():
        path = path.parent  # one of PEFT's files
    if path.is_file() or (path / CONFIG).is_file():
        return _starting_from(config, path)
    try:
        run = find_run(Path(config.outputs), name)
    except UserError as error:
        raise UserError(
            f"model.init_from={name}: neither a folder with {CONFIG}, nor a file of loralib, nor a "
            f"run. {error}"
        ) from error
    if run.result is None:
        raise UserError(f"model.init_from={name}: this run is {run.status['state']}, not done.")
    return _starting_from(config, run.adapter)


def is_from_best(config: Config) -> bool:
    """Whether a run starts from the best of others, which have to be done."""
    return (config.model.init_from or "").startswith(BEST)


def selector_of(config: Config) -> Selector | None:
    """The filter of `model.init_from=best:FILTER`; None if something else is given.

    Raises:
        UserError: if it is none.
    """
    from lora_exp.runs.selector import Selector

    if not is_from_best(config):
        return None
    return Selector.parse([str(config.model.init_from).removeprefix(BEST)])


def fits(config: Config, other: Mapping[str, Any]) -> bool:
    """Whether a run can start from another one: of the same backbone, adapted in the same way.

    Args:
        config: of the run.
        other: config of the other one, nested.
    """
    own = asdict(config)
    keys = ["method"] + (["lora"] if config.method == "lora" else [])
    alike = all(_shape(own.get(key)) == _shape(other.get(key)) for key in keys)
    return alike and own["model"]["name_or_path"] == other.get("model", {}).get("name_or_path")


def _shape(section: Any) -> Any:
    """What of a method decides whether its tensors fit."""
    if not isinstance(section, Mapping):
        return section
    return [section.get(key) for key in ("r", "dora", "bias", "placement")]


def _best(config: Config, selector: Selector) -> RunFolder:
    """The best run that is done, by the metric that decides its best epoch.

    Raises:
        UserError: if none is.
    """
    from lora_exp.runs.records import Records

    fitting = [
        run
        for run in Records(Path(config.outputs)).runs
        if run.result is not None and fits(config, run.config) and selector.matches(run)
    ]
    if not fitting:
        raise UserError(
            f"model.init_from={BEST}{selector}: no run of this backbone, method and placement that "
            f"is done in {config.outputs} matches."
        )
    return max(fitting, key=lambda run: main_merit(run.result or {})).folder


def _starting_from(config: Config, path: Path) -> Config:
    return replace(config, model=replace(config.model, init_from=str(path.absolute())))


def fingerprint(model: ModelConfig) -> str | None:
    """What identifies the start in a run's signature: the content of its files."""
    if model.init_from is None:
        return None
    path = Path(model.init_from)
    files = [path] if path.is_file() else sorted(path.glob("adapter_*"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def start(backbone: Backbone, config: Config) -> None:
    """Give what the method trains the values that `model.init_from` holds, all or none.

    A head of another size keeps its own start.

    Args:
        backbone: with the method attached.
        config: resolved.

    Raises:
        UserError: if they do not fit the model or the method.
    """
    if config.model.init_from is None:
        return
    path = Path(config.model.init_from)
    about = _about(path)
    origin = about.get("method") or ORIGINS.get(about.get("peft_type", "LORA"), "lora")
    if origin != config.method:
        raise UserError(
            f"model.init_from={path}: trained with method={origin}, which method={config.method} "
            "cannot start from. Export it (export RUN --to merged) and give that as "
            "model.name_or_path."
        )
    if origin == "lora":
        _start_lora(backbone, config, path)
    elif origin in ("prefix", "prompt"):
        _start_in_front(backbone, origin, path)
    else:
        from lora_exp.methods.full import read

        _start_by_name(backbone, read(path), path)


def _start_lora(backbone: Backbone, config: Config, path: Path) -> None:
    from lora_exp import lora

    try:
        alpha = config.lora.alpha if path.is_file() else None  # loralib's files do not hold it
        adapter = lora.read(path, alpha=alpha).named_for(backbone.model)
        left_out = _other_heads(backbone, adapter.others)
        _check_saved(backbone, config, adapter.others)
        try:
            lora.load(backbone.model, adapter, leave_out=left_out)
        except lora.OtherBackbone:
            raise
        except lora.AdapterError as error:
            raise lora.AdapterError(
                f"{error}\nGive lora.r and the placement of that adapter. (One that began with "
                "lora.init=pissa is saved with twice its rank.)"
            ) from error
    except lora.AdapterError as error:
        raise UserError(f"model.init_from: {error}") from error
    _say(path, len(adapter.updates), "layers with LoRA", left_out)


def _check_saved(backbone: Backbone, config: Config, others: dict[str, Tensor]) -> None:
    """Refuse what this run's own adapter would not hold: opened elsewhere, it would be another."""
    from lora_exp import lora

    def lost(bias: str) -> list[str]:
        saved = lora.lora_state_dict(model, bias, backbone.head_modules)
        return [name for name in others if name in state and name not in saved]

    model, state = backbone.model, backbone.model.state_dict()
    if names := lost(config.lora.bias):
        bias = next((bias for bias in ("lora_only", "all") if not lost(bias)), None)
        raise UserError(
            f"model.init_from={config.model.init_from}: trained {names[0]} ({len(names)} such "
            f"tensors), which this run neither trains nor saves. "
            + (f"Give lora.bias={bias}." if bias else "Start from an adapter without them.")
        )


def _start_in_front(backbone: Backbone, method: str, path: Path) -> None:
    from lora_exp.methods import virtual

    kept, head = virtual.read(path)
    try:
        virtual.restore(backbone, method, kept)
    except UserError as error:
        raise UserError(f"model.init_from={path}: {error}") from error
    _start_by_name(backbone, head, path)


def _start_by_name(backbone: Backbone, tensors: dict[str, Tensor], path: Path) -> None:
    import torch

    from lora_exp.methods import trained

    left_out = _other_heads(backbone, tensors)
    own = trained(backbone.model)
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if not any(name.startswith(f"{module}.") for module in left_out)
    }
    wrong = [n for n, t in found.items() if n not in own or own[n].shape != t.shape]
    if wrong:
        raise UserError(
            f"model.init_from={path}: {wrong[0]} is not among what this run trains, or of another "
            f"shape. Start from a run with the same backbone."
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    _say(path, len(found), "tensors", left_out)


def _other_heads(backbone: Backbone, tensors: dict[str, Tensor]) -> set[str]:
    """The head's modules, if it has another size there, or is not there as a whole."""
    state = backbone.model.state_dict()
    for name in backbone.head:
        if name not in tensors or tensors[name].shape != state[name].shape:
            return backbone.head_modules
    return set()


def _say(path: Path, number: int, what: str, left_out: set[str]) -> None:
    log.info("Starting from %s: %d %s.", path, number, what)
    if left_out:
        names = ", ".join(sorted(left_out))
        log.info("Its head does not fit (another number of labels, or none): %s start anew.", names)


def _about(path: Path) -> dict[str, str]:
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8")) if path.is_dir() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"model.init_from={path}: {CONFIG} cannot be read ({error}).") from error
    return about if isinstance(about, dict) else {}
