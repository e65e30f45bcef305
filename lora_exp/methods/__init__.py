"""How a model is adapted. One file per method, each with the same functions:

`attach(backbone, config)` puts in what the method adds and marks what it trains in the backbone;
`files(backbone, config)` gives the adapter's files: every trained tensor and nothing else;
`own(backbone, config)`, of methods that leave the pre-trained weights as they are, gives what each
run has around them: runs of such a method can train together over one copy of the weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from torch import nn

    from lora_exp.methods.together import Own
    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

SHARING = ("lora", "adapter", "bitfit", "prefix", "prompt")
"""Methods that leave the pre-trained weights as they are."""


class Method(Protocol):
    """A module of this package."""

    def attach(self, backbone: Backbone, config: Config) -> None:
        """Add the method's own weights and set `requires_grad` in the backbone.

        Raises:
            UserError: if the method does not fit the model.
        """
        ...

    def files(self, backbone: Backbone, config: Config) -> dict[str, bytes]:
        """The content of `adapter/`: file names and their bytes."""
        ...

    def own(self, backbone: Backbone, config: Config) -> Own:
        """What is the run's own; of the methods in `SHARING` alone."""
        ...


def method(name: str) -> Method:
    """The method of that name (`runs.config.METHODS`)."""
    return cast(Method, import_module(f"lora_exp.methods.{name}"))


def attach(backbone: Backbone, config: Config) -> None:
    """Make a backbone ready for a run: new matrices by seed and name, the method, the head.

    Afterwards exactly the run's trained parameters have `requires_grad`.
    """
    import torch

    from lora_exp.lora import named_generator

    model = backbone.model
    deviation = getattr(model.config, "initializer_range", 0.02)
    for name, parameter in model.named_parameters():
        # New biases and norms come as zeros and ones.
        if name in backbone.new and parameter.ndim > 1 and not parameter.is_meta:
            generator = named_generator(config.seed, name)
            parameter.data.copy_(torch.normal(0.0, deviation, parameter.shape, generator=generator))
    model.requires_grad_(False)
    method(config.method).attach(backbone, config)
    for name, parameter in model.named_parameters():
        if name in backbone.head:
            parameter.requires_grad = config.method != "lora" or config.lora.train_head


def shares_backbone(config: Config) -> bool:
    """Whether the method leaves every pre-trained weight as it is, so that runs can share them."""
    lora = config.lora
    changes = lora.dora or lora.init == "pissa" or lora.bias != "none"
    return config.method in SHARING and not (config.method == "lora" and changes)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a run trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_counts(backbone: Backbone, method_name: str) -> dict[str, int]:
    """Trained parameters by part, then the total: `{"lora": ..., "head": ..., "total": ...}`."""
    own = head = frozen = 0
    for name, parameter in backbone.model.named_parameters():
        if not parameter.requires_grad:
            frozen += parameter.numel()
        elif name in backbone.head:
            head += parameter.numel()
        else:
            own += parameter.numel()
    front = getattr(backbone.model.base_model, method_name, None)
    if front is not None:  # a network that makes a prefix is not kept
        own = front.size
    return {method_name: own, "head": head, "total": own + head + frozen}
