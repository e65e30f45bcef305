"""The hypotheses of each source as one tree over one key-value cache.

Beam search is usually run as a batch of beams, each with its own copy of the prompt's keys and
values, all of them copied again whenever beams change places. Here a batch row is a *source*: its
keys and values stand once, in slots, and the beams are the tokens of the row. A mask says which
slots are a beam's ancestors. A step writes one slot per beam and moves nothing; beams that change
places change rows of the mask. Any causal model of transformers takes such a mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ROOM = 16
"""Steps that the cache has room for before it is compacted."""


class Tree:
    """The model's state for a batch of sources, each with the same number of beams.

    Attributes:
        full: whether `compact` must come before the next `grow`.
    """

    def __init__(self, model: PreTrainedModel, width: int) -> None:
        """
        Args:
            model: a causal language model, in evaluation mode.
            width: beams for each source.
        """
        self._model = model
        self._width = width
        self._layers: list[_Slots] = [
            _Slots(ROOM * width) for _ in range(model.config.get_text_config().num_hidden_layers)
        ]
        self._cache = Cache(layers=list(self._layers))
        self._position: Tensor  # [sources], of the next token
        self._visible: Tensor  # [sources, beams, slots]: is the slot in the beam's history?

    @property
    def full(self) -> bool:
        return self._layers[0].free < self._width

    def plant(self, prompts: list[list[int]]) -> Tensor:
        """Run the prompts.

        Returns:
            [sources, 1, vocabulary], the logits after each prompt: a tree with one beam.
        """
        device = self._model.device
        longest = max(map(len, prompts))
        # Padded on the left, so that each last token stands in the last column.
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        column = torch.arange(longest, device=device)
        real = column >= longest - lengths[:, None]
        # Padding sees itself: a softmax over nothing is not a number.
        seen = (column[:, None] >= column) & real[:, None] | (column[:, None] == column)
        positions = (column - (longest - lengths)[:, None]).clamp(min=0)
        self._position = lengths
        self._visible = real[:, None]
        return self._run(tokens, positions, seen, logits_to_keep=1)

    def follow(self, parent: Tensor) -> None:
        """Make each beam a child of one of the present beams.

        Args:
            parent: [sources, width], the beams' numbers.
        """
        index = parent[..., None].expand(-1, -1, self._visible.shape[-1])
        self._visible = self._visible.gather(1, index)

    def grow(self, token: Tensor) -> Tensor:
        """Add a token to each beam.

        Args:
            token: [sources, width].

        Returns:
            [sources, width, vocabulary], the logits after it.
        """
        itself = torch.eye(self._width, dtype=torch.bool, device=token.device)
        itself = itself.expand(len(token), -1, -1)
        self._visible = torch.cat([self._visible, itself], -1)
        positions = self._position[:, None].expand_as(token)
        self._position = self._position + 1
        return self._run(token, positions, self._visible)

    def compact(self, sources: Tensor) -> None:
        """Keep these sources, and of their slots those that are some beam's ancestors.

        Args:
            sources: [kept], their numbers.
        """
        self._position = self._position[sources]
        visible = self._visible[sources]
        used = visible.any(1)
        most = int(used.sum(1).max())
        # Each source's used slots, in their order; then, up to the most, some that nothing sees.
        slots = used.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        self._visible = visible.gather(2, slots[:, None].expand(-1, visible.shape[1], -1))
        for layer in self._layers:
            layer.compact(sources, slots)

    def _run(self, tokens: Tensor, positions: Tensor, seen: Tensor, **options: Any) -> Tensor:
        # Added to the attention scores: the one form that every attention of transformers takes.
        mask = torch.zeros_like(seen, dtype=self._model.dtype).masked_fill_(~seen, -torch.inf)
        return self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask[:, None],
            past_key_values=self._cache,
            use_cache=True,
            **options,
        ).logits


class _Slots(CacheLayerMixin):
    """Keys and values of one layer: [sources, slots, heads, head size], the first `used` filled."""

    is_sliding = False

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._used = 0

    @property
    def free(self) -> int:
        assert self.keys is not None
        return self.keys.shape[1] - self._used

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._with_room(key_states.transpose(1, 2)[:, :0], key_states.shape[2])
        self.values = self._with_room(value_states.transpose(1, 2)[:, :0], key_states.shape[2])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [sources, heads, new, head size] and return all, in that form."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, self._used = self._used, self._used + key_states.shape[2]
        self.keys[:, start : self._used] = key_states.transpose(1, 2)
        self.values[:, start : self._used] = value_states.transpose(1, 2)
        return (
            self.keys[:, : self._used].transpose(1, 2),
            self.values[:, : self._used].transpose(1, 2),
        )

    def compact(self, sources: Tensor, slots: Tensor) -> None:
        """Keep [kept] sources and [kept, slots] slots of each."""
        assert self.keys is not None
        assert self.values is not None
        self._used = slots.shape[1]
        self.keys = self._with_room(self.keys[sources[:, None], slots], 0)
        self.values = self._with_room(self.values[sources[:, None], slots], 0)

    def _with_room(self, filled: Tensor, more: int) -> Tensor:
        sources, used, *sizes = filled.shape
        slots = filled.new_empty(sources, used + more + self._room, *sizes)
        slots[:, :used] = filled
        return slots

    def get_seq_length(self) -> int:
        return self._used

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._used + query_length, 0
