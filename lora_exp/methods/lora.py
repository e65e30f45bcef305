"""LoRA: a trained low-rank update beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_exp import lora
from lora_exp.errors import UserError
from lora_exp.methods.together import Own

if TYPE_CHECKING:
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config


def attach(backbone: Backbone, config: Config) -> None:
    """Place LoRA in the pre-trained part (never in the head) and give it its initial values."""
    model, placement = backbone.model, config.lora.placement
    head = {module.removeprefix(f"{model.base_model_prefix}.") for module in backbone.head_modules}
    try:
        lora.place(
            model.get_submodule(model.base_model_prefix),
            placement.targets or lora.preset(model.config.model_type, placement.preset),
            r=config.lora.r,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            leave=head,
            layers=placement.layers,
            rank_pattern=placement.rank_pattern,
            alpha_pattern=placement.alpha_pattern,
            rslora=config.lora.rslora,
            dora=config.lora.dora,
        )
    except lora.PlacementError as error:
        key = "lora.placement.targets" if placement.targets else "lora/placement"
        raise UserError(f"{key}: {error}") from error
    normal = model.config.initializer_range if config.lora.init == "normal" else None
    lora.initialise(model, config.seed, normal=normal)
    if config.lora.init == "pissa":
        try:
            lora.initialise_pissa(model)
        except ValueError as error:
            raise UserError(f"lora.init=pissa: {error}") from error
    lora.mark_only_lora_as_trainable(model, config.lora.bias)


def own(backbone: Backbone, config: Config) -> Own:
    """The layers with LoRA."""
    return Own(dict(lora.lora_layers(backbone.model)), lora.packed)


def files(backbone: Backbone, config: Config) -> dict[str, bytes]:
    """The two files that PEFT opens; the head is among its `modules_to_save`."""
    return lora.peft_files(
        backbone.model,
        base_model=config.model.name_or_path,
        modules_to_save=sorted(backbone.head_modules),
        bias=config.lora.bias,
        task_type="CAUSAL_LM" if backbone.writes else "SEQ_CLS",
        backbone=backbone.weights or None,
    )
