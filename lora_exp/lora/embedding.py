"""Embeddings: rows looked up in a frozen table, with a low-rank update of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_exp.lora.base import LoraLayer, full_precision
from lora_exp.lora.linear import add_low_rank


class Embedding(LoraLayer, nn.Embedding):
    """`torch.nn.Embedding` with a low-rank update of its table.

    lora_A is [r, num_embeddings] and starts at zero, lora_B is [embedding_dim, r] and starts
    random. The row of `padding_idx` gets no gradient, so its update stays zero.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: width of a row.
        r: rank; 0 is the plain layer.
        lora_alpha: numerator of the scaling alpha / r.
        merge_weights: `eval()` merges the update into the table, `train()` takes it out. With
            `max_norm`, which changes the table at each look-up, it is never merged.
        kwargs: of `torch.nn.Embedding`. `scale_grad_by_freq` concerns A alone, as in loralib, and
            `sparse` the table: A's gradient is dense.
    """

    b_starts_at_zero = False

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        r: int = 0,
        lora_alpha: float = 1,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        self._adapt(r, lora_alpha, merge_weights=merge_weights)

    def _adapt(self, *args: Any, merge_weights: bool = True, **kwargs: Any) -> None:
        super()._adapt(*args, merge_weights=merge_weights and self.max_norm is None, **kwargs)

    def factor_shapes(self) -> tuple[Sequence[int], Sequence[int]]:
        """[r, num_embeddings] and [embedding_dim, r]."""
        return (self.r, self.num_embeddings), (self.embedding_dim, self.r)

    def reset_lora_parameters(
        self, generator: torch.Generator | None = None, *, normal: float | None = None
    ) -> None:
        """Start anew: A zero, B normal with deviation 1, or `normal` if given."""
        self._start(self.lora_B, self.lora_A, generator, 1.0 if normal is None else normal)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """[num_embeddings, embedding_dim]"""
        return a.T @ b.T

    def add_update(
        self, plain: Tensor, input: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """[..., dim] and numbers [...] -> [..., dim]"""
        low = F.embedding(input, a.T, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        with full_precision(low):  # as plain look-ups
            return add_low_rank(plain, low, b, scaling)

    def _plain(self, input: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(
            input,
            weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
