"""AdamW as in the recipes: no decay on biases and norms, linear schedule with warm-up, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lora_exp.lora import lora_plus
from lora_exp.runs.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimiser:
    """One run's optimiser over its own parameters.

    They are laid end to end in one buffer for each learning rate and decay, and so are their
    gradients: an update is a few operations, however many parameters there are.

    Args:
        parameters: what the run trains, by name; their storage is replaced.
        train: the recipe.
        total_steps: number of updates until the learning rate is 0.
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
        self.decay_after = train.decay_after_update
        self.peak = train.lr
        self.total_steps = total_steps
        self.warmup_steps = (
            math.ceil(train.warmup_ratio * total_steps)
            if train.warmup_steps is None
            else train.warmup_steps
        )
        self._places: dict[nn.Parameter, tuple[nn.Parameter, slice]] = {}
        groups = lora_plus(parameters.items(), 1.0, ratio_of_b, train.weight_decay)
        self.adam = torch.optim.AdamW(
            [
                group | {"params": [self._end_to_end(group["params"])], "ratio": group["lr"]}
                for group in groups
            ],
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            fused=True,
        )
        self._decays = [group["weight_decay"] for group in self.adam.param_groups]
        if self.decay_after:
            for group in self.adam.param_groups:
                group["weight_decay"] = 0.0

    @torch.no_grad()
    def _end_to_end(self, parameters: list[nn.Parameter]) -> nn.Parameter:
        whole = nn.Parameter(torch.cat([one.detach().flatten() for one in parameters]))
        whole.grad = torch.zeros_like(whole)
        end = 0
        for one in parameters:
            place = slice(end, end := end + one.numel())
            self._places[one] = whole, place
            one.data = whole.data[place].view(one.shape)
            one.grad = whole.grad[place].view(one.shape)
        return whole

    @property
    def buffers(self) -> list[nn.Parameter]:
        """Everything that is trained, end to end, with its gradient."""
        return [group["params"][0] for group in self.adam.param_groups]

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
        norm = nn.utils.clip_grad_norm_(self.buffers, limit)
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate(step) * group["ratio"]
        self.adam.step()
        if self.decay_after:
            self._decay()
        self.clear()
        return norm

    @torch.no_grad()
    def _decay(self) -> None:
        for group, decay in zip(self.adam.param_groups, self._decays, strict=True):
            group["params"][0].mul_(1 - group["lr"] * decay)

    def clear(self) -> None:
        """Let every gradient be zero."""
        self.adam.zero_grad(set_to_none=False)

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments by name, not copied."""
        tensors = {f"parameter.{name}": one.data for name, one in self.parameters.items()}
        for name, whole, place in self._named():
            if whole in self.adam.state:
                tensors["updates"] = self.adam.state[whole]["step"]
                for key in MOMENTS:
                    moment = self.adam.state[whole][key][place]
                    tensors[f"{key}.{name}"] = moment.view(self.parameters[name].shape)
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, whole, place in self._named():
            self.parameters[name].copy_(tensors[f"parameter.{name}"])
            if "updates" not in tensors:
                continue
            if whole not in self.adam.state:
                step = tensors["updates"].to(whole.device, copy=True)
                zeros = {key: torch.zeros_like(whole) for key in MOMENTS}
                self.adam.state[whole] = {"step": step, **zeros}
            for key in MOMENTS:
                self.adam.state[whole][key][place] = tensors[f"{key}.{name}"].flatten()

    def _named(self) -> Iterator[tuple[str, nn.Parameter, slice]]:
        for name, parameter in self.parameters.items():
            yield name, *self._places[parameter]
