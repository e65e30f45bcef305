"""LoRA: a trained low-rank update beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_exp import lora
from lora_exp.errors import UserError

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config


def attach(backbone: Backbone, config: Config) -> None:
    """Place LoRA in the pre-trained part (never in the head) and give it its initial values."""
    model, placement = backbone.model, config.lora.placement
    try:
        targets = placement.targets or lora.preset(model.config.model_type, placement.preset)
        lora.place(
            model.get_submodule(model.base_model_prefix),
            targets,
            r=config.lora.r,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            leave={
                module.removeprefix(f"{model.base_model_prefix}.") for module in _head(backbone)
            },
        )
    except lora.PlacementError as error:
        key = "lora.placement.targets" if placement.targets else "lora/placement"
        raise UserError(f"{key}: {error}") from error
    normal = model.config.initializer_range if config.lora.init == "normal" else None
    lora.initialise(model, config.seed, normal=normal)


def files(backbone: Backbone, config: Config) -> dict[str, bytes]:
    """The two files that PEFT opens; the head is among its `modules_to_save`."""
    return lora.peft_files(
        backbone.model,
        base_model=config.model.name_or_path,
        modules_to_save=sorted(_head(backbone)),
        task_type="SEQ_CLS",
    )


def _head(backbone: Backbone) -> set[str]:
    """The head's modules: whole ones outside the pre-trained part, single layers inside of it."""
    modules = set()
    for parameter in backbone.head:
        part, _, rest = parameter.partition(".")
        inside = part == backbone.model.base_model_prefix
        modules.add(f"{part}.{rest.rsplit('.', 1)[0]}" if inside else part)
    return modules
