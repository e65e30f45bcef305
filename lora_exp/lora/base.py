"""What every LoRA layer shares: a frozen weight, two trained factors, and the exact merge of both.

        x ------------> W (frozen) ----------------------+--> W x + b + (alpha / r) B A dropout(x)
         \\                                              /
          dropout --> A [r, in] --> B [out, r] --> alpha / r

The kinds of layers (linear, embedding, convolution) say how they look with and without the update;
arguments and parameter names are those of loralib, so its state dictionaries load.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

Factors = tuple[Tensor, Tensor]
"""lora_A and lora_B of one layer, in the shapes in which it holds them."""


class Rows(Protocol):
    """What gives the rows of a batch adapters of their own (`adapters.py`, `packed.py`)."""

    def forward(self, layer: LoraLayer, input: Tensor) -> Tensor:
        """The layer's output."""
        ...


class LoraLayer(nn.Module):
    """A mixin before the plain module: `class Linear(LoraLayer, nn.Linear)`.

    Attributes:
        r: rank; 0 is the plain layer.
        lora_alpha: numerator of the scaling alpha / r.
        scaling: factor of the update: alpha / r, or alpha / sqrt(r) where rank-stabilised.
        rslora: rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732).
        merge_weights: `eval()` merges and `train()` unmerges.
        merged: `weight` is at present W + scaling * B A. The original is kept aside, so unmerging
            is exact; in inference the layer then costs what the plain one does. Where gradients of
            the factors are recorded, they are computed apart all the same. Once they have changed,
            the merged weight is renewed by the next forward, `eval()` or `merge()`.
    """

    rows: Rows | None = None
    _unmerged: tuple[Tensor, Tensor] | None = None  # W and what stands in its place
    _merged_at: Sequence[int] = ()  # versions of what was merged
    _is_to_start = False  # made on the meta device: the factors have no values yet
    weight: Tensor
    lora_A: nn.Parameter  # noqa: N815 (loralib's name, which its checkpoints hold)
    lora_B: nn.Parameter  # noqa: N815
    b_starts_at_zero = True
    """So that the update does; in embeddings A starts at zero."""

    # -- what a kind of layer defines ----------------------------------------------------------

    def factor_shapes(self) -> tuple[Sequence[int], Sequence[int]]:
        """Shapes of lora_A and lora_B."""
        raise NotImplementedError

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """B A in the shape and layout of the weight, not scaled."""
        raise NotImplementedError

    def add_update(
        self, plain: Tensor, input: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """The plain output plus that of the update, dropout included."""
        raise NotImplementedError

    def _plain(self, input: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    # -- factors: one block of A's rows with B's columns, or several (fused projections) ---------

    def blocks(self, a: Tensor, b: Tensor) -> list[Factors]:
        """Views on the factors that are multiplied with each other: A_i [r_i, ...], B_i [..., r_i].

        Raises:
            ValueError: if factors of this rank are not possible in this layer.
        """
        return [(a, b)]

    def assemble(self, blocks: Sequence[Factors]) -> Factors:
        """The inverse of `blocks`."""
        ((a, b),) = blocks
        return a, b

    def dense(self, a: Tensor, b: Tensor) -> Factors:
        """The factors as PEFT has them: one A and one B of the whole update.

        Raises:
            ValueError: if PEFT has no form for it.
        """
        return a, b

    def from_dense(self, a: Tensor, b: Tensor) -> Factors:
        """The inverse of `dense`.

        Raises:
            ValueError: if this layer cannot hold such an update.
        """
        return a, b

    def fit(self, a: Tensor, b: Tensor) -> Factors:
        """Factors of any rank, in the form of loralib or of PEFT, in the form of this layer.

        Raises:
            ValueError: if they do not fit.
        """
        if not self._is_own_form(a, b):
            shapes = list(a.shape), list(b.shape)
            a, b = self.from_dense(a, b)
            if not self._is_own_form(a, b):
                expected = " and ".join(str(list(shape)) for shape in self.factor_shapes())
                raise ValueError(f"A and B are {shapes[0]} and {shapes[1]} instead of {expected}")
        self.blocks(a, b)
        return a, b

    def _is_own_form(self, a: Tensor, b: Tensor) -> bool:
        (rank_a, inputs), (outputs, rank_b) = self.factor_shapes()
        if a.ndim != 2 or b.ndim != 2 or (a.shape[1], b.shape[0]) != (inputs, outputs):
            return False
        return a.shape[0] * rank_b == b.shape[1] * rank_a

    def join(self, adapters: Sequence[Factors]) -> Factors:
        """Factors whose product is the sum of the adapters' products: their ranks add up."""
        split = [self.blocks(a, b) for a, b in adapters]
        return self.assemble(
            [
                (torch.cat([a for a, _ in block]), torch.cat([b for _, b in block], dim=1))
                for block in zip(*split, strict=True)
            ]
        )

    @torch.no_grad()
    def put(self, a: Tensor, b: Tensor, scaling: float) -> None:
        """Let the layer hold this update, in place; where its rank is lower than the layer's, the
        rest of the factor that starts at zero is zero, and the other one's can still be trained.

        Args:
            a: as `blocks` takes it.
            b: likewise.
            scaling: of this update; the layer's own stays, B is stretched instead.

        Raises:
            ValueError: if the rank is higher than the layer's; nothing is changed.
        """
        own, new = self.blocks(self.lora_A, self.lora_B), self.blocks(a, b)
        if len(a) > len(self.lora_A):
            raise ValueError(f"{len(a)} rows of A do not fit into a layer of {len(self.lora_A)}")
        for (own_a, own_b), (new_a, new_b) in zip(own, new, strict=True):
            rank = len(new_a)
            if rank < len(own_a):
                (own_b[:, rank:] if self.b_starts_at_zero else own_a[rank:]).zero_()
                own_a, own_b = own_a[:rank], own_b[:, :rank]
            own_a.copy_(new_a)
            own_b.copy_(new_b)
            if scaling != self.scaling:
                own_b.mul_(scaling / self.scaling)
        if self.merged:
            self.merge()

    # -- making one ----------------------------------------------------------------------------

    @classmethod
    def wrap(cls, module: nn.Module, **arguments: Any) -> Self:
        """The layer in place of `module`, whose weight and bias it takes over, not copied.

        The factors are in float32 or wider, whatever the weight is in: they are what is trained.

        Args:
            module: of the plain kind.
            arguments: `r`, `lora_alpha`, `lora_dropout`, `merge_weights`, `rslora`, and what the
                layer adds to these.

        Raises:
            ValueError: if the object has a forward of its own, which would hide the layer's.
        """
        if "forward" in module.__dict__:
            raise ValueError(
                "the module's forward was replaced (accelerate does so): place LoRA before that"
            )
        layer = cls.__new__(cls)
        own = ("_parameters", "_buffers", "_modules")  # but the hooks, whose handles go on to work
        parts = module.__dict__.items()
        layer.__dict__ = {key: copy.copy(v) if key in own else v for key, v in parts}
        layer._take_over(module)
        layer._adapt(dtype=torch.promote_types(layer.weight.dtype, torch.float32), **arguments)
        return layer

    def _take_over(self, module: nn.Module) -> None:
        """Note what a layer of this kind must know of the plain module beyond its attributes."""

    def _adapt(
        self,
        r: int | Sequence[int],
        lora_alpha: float = 1.0,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        *,
        rslora: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Add the factors to a plain module that is complete."""
        ranks = r if isinstance(r, Sequence) else (r,)
        if any(one < 0 or one != int(one) for one in ranks):
            raise ValueError(f"r={r}: a rank cannot be negative, nor a fraction")
        rank = max(map(int, ranks), default=0)
        self.r, self.lora_alpha, self.rslora = rank, lora_alpha, rslora
        self.scaling = lora_alpha / (math.sqrt(rank) if rslora else rank) if rank else 0.0
        self.lora_dropout = nn.Dropout(lora_dropout).train(self.training)
        self.merge_weights = merge_weights
        self.rows = self._unmerged = None
        if self.is_adapted:
            self.weight.requires_grad = False
            for name, shape in zip(("lora_A", "lora_B"), self.factor_shapes(), strict=True):
                empty = torch.empty(
                    tuple(shape), dtype=dtype or self.weight.dtype, device=self.weight.device
                )
                setattr(self, name, nn.Parameter(empty))
            self.reset_lora_parameters()

    @property
    def is_adapted(self) -> bool:
        """There is an update: the rank is not 0."""
        return self.r > 0

    def reset_parameters(self) -> None:
        """Start anew, weight and update."""
        self.while_unmerged(self._reset_plain)
        if "lora_A" in self._parameters:
            self.reset_lora_parameters()

    def _reset_plain(self) -> None:
        super().reset_parameters()  # type: ignore[misc]

    def reset_lora_parameters(
        self, generator: torch.Generator | None = None, *, normal: float | None = None
    ) -> None:
        """Start the update anew: A random, B zero, so that it is zero.

        Args:
            generator: on the CPU; None is the global one.
            normal: standard deviation of a normal A; None is uniform as in `torch.nn.Linear`
                (kaiming, a = sqrt 5).
        """
        self._start(self.lora_A, self.lora_B, generator, normal)

    def _start(
        self, random: Tensor, zero: Tensor, generator: torch.Generator | None, normal: float | None
    ) -> None:
        self._is_to_start = random.is_meta
        if random.is_meta:
            return
        values = torch.empty(random.shape, device="cpu")
        if normal is None:
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
        else:
            nn.init.normal_(values, std=normal, generator=generator)
        with torch.no_grad():
            random.copy_(values)
            zero.zero_()

    # -- output --------------------------------------------------------------------------------

    def forward(self, input: Tensor) -> Tensor:
        """As the plain layer, with the update."""
        if not self.is_adapted or self._is_read_merged():
            return self._plain(input, self.weight)
        if self.rows is not None:
            return self.rows.forward(self, input)
        plain = self._plain(input, self.base_weight)
        return self.add_update(plain, input, self.lora_A, self.lora_B, self.scaling)

    def _is_read_merged(self) -> bool:
        if self._unmerged is None or self.rows is not None:
            return False
        if torch.is_grad_enabled():
            parts = (self.lora_A, self.lora_B, self._unmerged[0])
            if any(part.requires_grad for part in parts):
                self._merged_at = ()  # a training step may follow; fused ones leave no other trace
                return False
        # A compiled graph cannot ask: there, `eval()` renews.
        if not torch.compiler.is_compiling() and self._merged_at != self._versions():
            self.merge()
        return True

    def _versions(self) -> list[int]:
        """Other numbers after each change in place of what is trained, as by an optimiser."""
        trained = [p for name, p in self._parameters.items() if p is not None and "lora_" in name]
        return [0 if p.is_inference() else p._version for p in trained]

    # -- merging -------------------------------------------------------------------------------

    @property
    def merged(self) -> bool:
        """`weight` holds the update at present."""
        return self._unmerged is not None

    @property
    def base_weight(self) -> Tensor:
        """The frozen weight W, merged or not."""
        return self.weight if self._unmerged is None else self._unmerged[0]

    @torch.no_grad()
    def adapted_weight(self) -> Tensor:
        """The weight with the update, computed in float32 or wider, in W's dtype."""
        base = self.base_weight
        wide = torch.promote_types(base.dtype, torch.float32)
        with full_precision(base):
            product = self.product(self.lora_A.to(wide), self.lora_B.to(wide))
            return self._adapted(base.to(wide), product).to(base.dtype)

    def _adapted(self, weight: Tensor, product: Tensor) -> Tensor:
        """W + scaling * B A"""
        return torch.add(weight, product, alpha=self.scaling)

    def merge(self) -> None:
        """Let `weight` hold the update as it is now; a merged one is renewed in place."""
        if not self.is_adapted:
            return
        if self._unmerged is not None and self.weight is not self._unmerged[1]:
            self.unmerge()  # there is another W
        with torch.inference_mode(False):
            adapted = self.adapted_weight()
            if self.merged:
                self.weight.data.copy_(adapted)
            else:  # another object: whoever shares W (tied weights) keeps W
                base, self.weight = self.weight, nn.Parameter(adapted, requires_grad=False)
                self._unmerged = base, self.weight
            self._merged_at = self._versions()

    def unmerge(self) -> None:
        """Let `weight` be W again, the very same tensor, or what was assigned in its place."""
        if self._unmerged is not None:
            (base, merged), self._unmerged = self._unmerged, None
            if self.weight is merged:
                self.weight = base
            merged.data = base.data  # for a module that was tied to it meanwhile

    def train(self, mode: bool = True) -> Self:
        """Training mode or not; with `merge_weights`, unmerged or merged."""
        super().train(mode)
        if self._is_to_start and self._was_left_empty():
            self.reset_lora_parameters()
        if self.merge_weights:
            self.unmerge() if mode else self.merge()
        return self

    def _was_left_empty(self) -> bool:
        """transformers' from_pretrained makes a model on the meta device, marks what it has loaded
        or started, knows nothing of factors that its file lacks, and calls `eval()` at the end."""
        marks = [getattr(part, "_is_hf_initialized", False) for part in (self, self.lora_A)]
        return marks == [True, False] and not self.lora_A.is_meta

    # What reads or replaces the weight from outside is shown W.

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            base = self.base_weight
            destination[f"{prefix}weight"] = base if keep_vars else base.detach()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.while_unmerged(super()._load_from_state_dict, *args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        return self.while_unmerged(super()._apply, *args, **kwargs)

    def while_unmerged(self, act: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something that reads or replaces W; then merge anew if it was merged."""
        merged = self.merged
        self.unmerge()
        result = act(*args, **kwargs)
        if merged:
            self.merge()
        return result

    def extra_repr(self) -> str:
        """The plain layer's, then rank and alpha."""
        return f"{super().extra_repr()}, r={self.r}, lora_alpha={self.lora_alpha}"


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast chooses the dtype of a product with this tensor."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Within this context, autocast does not."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()
