"""The loss of a language model, a few rows of logits at a time.

GPT-2 has 50,257 tokens: the logits of a batch of 8 x 64 targets take 100 MB in fp32, and with their
gradients and softmax several times as much. Here they are made for some rows, turned into the loss
and the gradient of the hidden states, and dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LOGITS = 2**24
"""Most of them at a time: 64 MiB in fp32."""


def cross_entropy(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Mean cross entropy of the logits `rows @ weight.T + bias`, as
    `torch.nn.functional.cross_entropy`; 0 if there are no rows.

    Args:
        rows: [targets, hidden].
        weight: [vocabulary, hidden], trained or not.
        bias: [vocabulary], or None.
        targets: int64 [targets].
        smoothing: (1 - smoothing) * nll + smoothing * mean over the vocabulary of -log p, as
            microsoft/LoRA's examples/NLG/src/model.py.
        dtype: of the matrix products; the softmax is in fp32.
    """
    return _CrossEntropy.apply(rows, weight, bias, targets, smoothing, dtype)  # pyright: ignore[reportReturnType]


class _CrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass: what is kept is as large as the rows, not as the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        dtype: torch.dtype,
    ) -> Tensor:
        for_rows, for_weight, for_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), device=rows.device)
        of_rows = torch.zeros_like(rows) if for_rows else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        vocabulary, size = len(weight), max(1, LOGITS // len(weight))
        with torch.autocast(rows.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(rows), size):
                some, wanted = rows[start : start + size].to(dtype), targets[start : start + size]
                log_p = F.linear(some, matrix, offset).float().log_softmax(-1)
                nll = -log_p.gather(1, wanted[:, None]).sum()
                if smoothing:
                    nll = (1 - smoothing) * nll - smoothing * log_p.mean(-1).sum()
                total += nll
                if not any(ctx.needs_input_grad):
                    continue
                # d loss / d logits = p - (1 - smoothing) * (the right one) - smoothing / vocabulary
                of_logits = log_p.exp_().sub_(smoothing / vocabulary).div_(len(rows))
                of_logits[torch.arange(len(some), device=rows.device), wanted] -= (
                    1 - smoothing
                ) / len(rows)
                lower = of_logits.to(dtype)
                if of_rows is not None:
                    of_rows[start : start + size] = lower @ matrix
                if of_weight is not None:
                    of_weight += lower.T @ some
                if for_bias and of_bias is not None:
                    of_bias += of_logits.sum(0)
        ctx.save_for_backward(of_rows, of_weight, of_bias if for_bias else None)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total / max(1, len(rows))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        of_rows, of_weight, of_bias = ctx.saved_tensors
        (scale,), (of_weights, of_biases) = gradients, ctx.dtypes
        return (
            None if of_rows is None else of_rows * scale.to(of_rows.dtype),
            None if of_weight is None else (of_weight * scale).to(of_weights),
            None if of_bias is None else (of_bias * scale).to(of_biases),
            None,
            None,
            None,
        )
