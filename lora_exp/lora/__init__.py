"""LoRA for PyTorch models: layers, placing them, several adapters at once, their files.

Stands alone: nothing here knows of configs, tasks or runs.

    from lora_exp import lora

    layers = lora.place(model, lora.preset("bert", "qv"), r=8, alpha=16)
    lora.mark_only_lora_as_trainable(model)
    ...
    torch.save(lora.lora_state_dict(model), "adapter.pt")
"""

from lora_exp.lora.adapters import Adapters
from lora_exp.lora.base import LoraLayer
from lora_exp.lora.convolution import Conv1d, Conv2d, Conv3d
from lora_exp.lora.dora import DoraLinear
from lora_exp.lora.embedding import Embedding
from lora_exp.lora.files import read
from lora_exp.lora.initial import initialise, initialise_pissa, named_generator
from lora_exp.lora.linear import Linear, MergedLinear
from lora_exp.lora.loading import (
    Adapter,
    AdapterError,
    OtherBackbone,
    attach,
    backbone_hash,
    load,
)
from lora_exp.lora.packed import packed
from lora_exp.lora.placement import PlacementError, place
from lora_exp.lora.presets import preset
from lora_exp.lora.state import (
    lora_layers,
    lora_plus,
    lora_state_dict,
    mark_only_lora_as_trainable,
)
from lora_exp.lora.writing import loralib_state_dict, merged_state_dict, peft_files, serialise

LoRALayer = LoraLayer
"""loralib's name."""

__all__ = [
    "Adapter",
    "AdapterError",
    "Adapters",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "DoraLinear",
    "Embedding",
    "Linear",
    "LoRALayer",
    "LoraLayer",
    "MergedLinear",
    "OtherBackbone",
    "PlacementError",
    "attach",
    "backbone_hash",
    "initialise",
    "initialise_pissa",
    "load",
    "lora_layers",
    "lora_plus",
    "lora_state_dict",
    "loralib_state_dict",
    "mark_only_lora_as_trainable",
    "merged_state_dict",
    "named_generator",
    "packed",
    "peft_files",
    "place",
    "preset",
    "read",
    "serialise",
]
