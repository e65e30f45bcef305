"""LoRA for PyTorch models: layers, placing them, their state, their files.

Stands alone: nothing here knows of configs, tasks or runs.

    from lora_exp import lora

    layers = lora.place(model, lora.preset("bert", "qv"), r=8, alpha=16)
    lora.mark_only_lora_as_trainable(model)
    ...
    torch.save(lora.lora_state_dict(model), "adapter.pt")
"""

from lora_exp.lora.files import peft_files
from lora_exp.lora.initial import initialise, named_generator
from lora_exp.lora.layers import Linear, LoraLayer, MergedLinear
from lora_exp.lora.placement import PlacementError, place, preset
from lora_exp.lora.state import lora_layers, lora_state_dict, mark_only_lora_as_trainable

__all__ = [
    "Linear",
    "LoraLayer",
    "MergedLinear",
    "PlacementError",
    "initialise",
    "lora_layers",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "named_generator",
    "peft_files",
    "place",
    "preset",
]
