"""LoRA: a trained low-rank update beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_exp import lora
from lora_exp.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lora_exp.runs.config import Config


def attach(model: PreTrainedModel, config: Config) -> None:
    """Place LoRA in the backbone (never in the head) and give it its initial values."""
    placement = config.lora.placement
    backbone = model.get_submodule(model.base_model_prefix)
    try:
        targets = placement.targets or lora.preset(model.config.model_type, placement.preset)
        lora.place(
            backbone,
            targets,
            r=config.lora.r,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
        )
    except lora.PlacementError as error:
        key = "lora.placement.targets" if placement.targets else "lora/placement"
        raise UserError(f"{key}: {error}") from error
    normal = model.config.initializer_range if config.lora.init == "normal" else None
    lora.initialise(model, config.seed, normal=normal)
    lora.mark_only_lora_as_trainable(model)


def files(model: PreTrainedModel, config: Config, head: frozenset[str]) -> dict[str, bytes]:
    """The two files that PEFT opens; the head is among its `modules_to_save`."""
    return lora.peft_files(
        model,
        base_model=config.model.name_or_path,
        modules_to_save=sorted({_module(name, model.base_model_prefix) for name in head}),
        task_type="SEQ_CLS",
    )


def _module(parameter: str, backbone: str) -> str:
    """The part of the head that a parameter belongs to; a new layer in the backbone is its own."""
    part, _, rest = parameter.partition(".")
    return f"{part}.{rest.rsplit('.', 1)[0]}" if part == backbone else part
