"""DoRA: the update turns the weight's rows, a trained magnitude stretches them.

Liu et al. 2024 (arXiv:2402.09353), equation 5: W' = m (W + scaling B A) / |W + scaling B A|, the
norm over the row of each output, and not differentiated (section 4.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_exp.lora.base import full_precision
from lora_exp.lora.linear import Linear, add_low_rank

TINY = torch.finfo(torch.float32).tiny
"""Instead of a norm of zero: a row of zeros stays one."""


class DoraLinear(Linear):
    """`Linear` with a magnitude for each output.

    `lora_magnitude_vector` [out] is at first the norms of the weight's rows.
    """

    lora_magnitude_vector: nn.Parameter

    def reset_lora_parameters(
        self, generator: torch.Generator | None = None, *, normal: float | None = None
    ) -> None:
        """Start anew: an update of zero and the magnitude of the weight as it is now."""
        super().reset_lora_parameters(generator, normal=normal)
        if "lora_magnitude_vector" not in self._parameters:
            self.lora_magnitude_vector = nn.Parameter(self.lora_A.new_empty(self.out_features))
        self._reset_magnitude()

    @torch.no_grad()
    def _reset_magnitude(self) -> None:
        if not self.lora_A.is_meta:
            self.lora_magnitude_vector.copy_(self._norm(self.lora_A, self.lora_B, self.scaling))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        given = [f"{prefix}{name}" in state_dict for name in ("weight", "lora_magnitude_vector")]
        if given == [True, False] and self._is_at_start():  # a plain model's weight
            self._reset_magnitude()

    def _is_at_start(self) -> bool:
        return self.is_adapted and not self.lora_B.is_meta and not self.lora_B.any()

    def add_update(
        self, plain: Tensor, input: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """[..., out] and [..., in] -> [..., out]; dropout acts on the input of W and A alike."""
        ratio = self.lora_magnitude_vector / self._norm(a, b, scaling).clamp_min(TINY)
        dropped = self._for_update(input, a)
        low = F.linear(dropped, a)
        if self.training and self.lora_dropout.p > 0:
            base = F.linear(dropped.to(input.dtype), self._rows_of_weight)
            return (plain - base + ratio * add_low_rank(base, low, b, scaling)).to(plain.dtype)
        if self.bias is None:
            return (ratio * add_low_rank(plain, low, b, scaling)).to(plain.dtype)
        turned = add_low_rank(plain - self.bias, low, b, scaling)
        return torch.addcmul(self.bias, ratio, turned).to(plain.dtype)

    def _adapted(self, weight: Tensor, product: Tensor) -> Tensor:
        """m (W + scaling B A) / |W + scaling B A|"""
        turned = super()._adapted(weight, product)
        inputs = 0 if self.fan_in_fan_out else 1
        magnitude = self.lora_magnitude_vector.unsqueeze(inputs)
        return turned * (magnitude / turned.norm(dim=inputs, keepdim=True).clamp_min(TINY))

    @property
    def _rows_of_weight(self) -> Tensor:
        return self.base_weight.T if self.fan_in_fan_out else self.base_weight

    @torch.no_grad()
    def _norm(self, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Norm of each row of W + scaling B A, [out]."""
        with full_precision(a):
            weight = self._rows_of_weight.to(torch.promote_types(a.dtype, torch.float32))
            return torch.addmm(weight, b.to(weight.dtype), a.to(weight.dtype), alpha=scaling).norm(
                dim=1
            )
