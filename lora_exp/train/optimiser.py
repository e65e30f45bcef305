"""AdamW as in the recipes: no decay on biases and norms, linear schedule with warm-up, clipping."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lora_exp.lora import lora_plus
from lora_exp.runs.config import TrainConfig


class Optimiser:
    """One run's optimiser over its own parameters.

    Args:
        parameters: what the run trains, by name.
        train: the recipe.
        total_steps: number of updates of the whole run.
        ratio_of_b: the learning rate of LoRA's B, and of vectors, over that of other matrices.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        train: TrainConfig,
        total_steps: int,
        ratio_of_b: float = 1.0,
    ) -> None:
        self.parameters = parameters
        self.max_norm = train.max_grad_norm
        self.peak = train.lr
        self.total_steps = total_steps
        self.warmup_steps = (
            math.ceil(train.warmup_ratio * total_steps)
            if train.warmup_steps is None
            else train.warmup_steps
        )
        groups = lora_plus(parameters.items(), 1.0, ratio_of_b, train.weight_decay)
        self.adam = torch.optim.AdamW(
            [group | {"ratio": group["lr"]} for group in groups],
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            fused=True,
        )

    def learning_rate(self, step: int) -> float:
        """Of update number `step` (from 0): linear up to the peak, then linear down to 0, as
        transformers' `get_linear_schedule_with_warmup`."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        left = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * max(0.0, left)

    def update(self, step: int) -> Tensor:
        """Clip, update, clear the gradients.

        Returns:
            The gradient's norm before clipping, as a tensor: reading it would wait for the GPU.
        """
        limit = self.max_norm if self.max_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate(step) * group["ratio"]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments by name, not copied."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter.data
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"parameter.{name}"])
            if f"step.{name}" in tensors:
                self.adam.state[parameter] = {
                    key: tensors[f"{key}.{name}"].to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
