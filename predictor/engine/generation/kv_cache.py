"""The KV cache: one pool of token slots for all sequences, seen by the model as one padded batch.

Each layer has a tensor for keys and one for values with a place for every token of the KV budget;
they are as large as the plan says and never grow. A sequence owns slots, wherever they are free.
For a pass the sequences' tokens are laid out as rows that end together:

    row 0   . . . . p p p p p p n      p: cached    n: new
    row 1   . . p p p p n n n n n      .: padding (slot 0, which stays zero)

The model is given the new columns alone, and a mask that hides the padding; a layer writes its new
keys and values to their slots and gathers whole rows. That is what transformers calls left padding,
so it holds for every architecture that can be batched at all, ALiBi among them. Padding is never
written, so no row can see another, whatever is computed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from predictor.engine.shape_buckets import bucket_context, bucket_new_tokens


@dataclass(frozen=True, slots=True)
class Row:
    """New tokens of one sequence.

    Attributes:
        key: The sequence.
        start: How many of its tokens are cached.
        tokens: The tokens after those.
    """

    key: int
    start: int
    tokens: Sequence[int]

    @property
    def end(self) -> int:
        """How many are cached afterwards."""
        return self.start + len(self.tokens)


class Layout:
    """Where the tokens of one pass are.

    Attributes:
        past: Columns before the new ones.
        new: Columns that the model computes.
        lengths: Tokens of each row, of shape (rows,).
    """

    def __init__(
        self, rows: Sequence[Row], slots: Sequence[torch.Tensor], *, bucket_shapes: bool = False
    ) -> None:
        """Lays out rows.

        Args:
            rows: The rows.
            slots: For each row the slots of all its tokens, of shape (tokens,).
            bucket_shapes: Whether there are a few columns of padding more, see `shapes`.
        """
        self.new, width = max(len(row.tokens) for row in rows), max(row.end for row in rows)
        if bucket_shapes:
            self.new, width = bucket_new_tokens(self.new), bucket_context(width)
        self.past = width - self.new
        self.lengths = torch.tensor([row.end for row in rows])
        gather = torch.zeros(len(rows), width, dtype=torch.long)
        for index, own in enumerate(slots):
            gather[index, width - len(own) :] = own
        written = torch.cat([own[row.start :] for row, own in zip(rows, slots, strict=True)])
        fresh = [
            torch.arange((index + 1) * self.new - len(row.tokens), (index + 1) * self.new)
            for index, row in enumerate(rows)
        ]
        is_padded = len(written) < len(rows) * self.new
        self._host = (gather, written, torch.cat(fresh) if is_padded else None)
        self._there: dict[torch.device, tuple[torch.Tensor, torch.Tensor, Any]] = {}

    def indices(
        self, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Returns indices on a device.

        They are: slots to gather, (rows, width); slots to write, (tokens,); which of the computed
        columns those are, (tokens,), or None where it is all of them.
        """
        if device not in self._there:
            gather, written, fresh = self._host
            self._there[device] = (
                gather.to(device),
                written.to(device),
                None if fresh is None else fresh.to(device),
            )
        return self._there[device]


class SlotCache(Cache):
    """A transformers cache over the pool; `lay_out` says what the next pass is about."""

    def __init__(self, layers: int, slots: int, max_length: int) -> None:
        """Makes an empty pool; a layer's memory is taken when it is first written.

        Args:
            layers: Layers of the model.
            slots: Tokens that the pool has places for, the padding's one included.
            max_length: Tokens of the longest sequence.
        """
        self.layout: Layout | None = None
        self._free = torch.arange(slots - 1, 0, -1)
        self._free_count = slots - 1
        self._max_length = max_length
        self._owned: dict[int, tuple[torch.Tensor, int]] = {}
        super().__init__(layers=[_Layer(self, slots) for _ in range(layers)])

    def lay_out(self, rows: Sequence[Row], *, bucket_shapes: bool = False) -> Layout:
        """Gives the rows the slots that they lack, and returns the layout of the next pass.

        Args:
            rows: The rows.
            bucket_shapes: Whether passes shall come in few shapes, see `Layout`.

        Raises:
            MemoryError: There are not enough; whoever planned the pass miscounted.
        """
        slots = [self._slots(row.key, row.end) for row in rows]
        self.layout = Layout(rows, slots, bucket_shapes=bucket_shapes)
        return self.layout

    def release(self, key: int) -> None:
        """Takes a sequence's slots back."""
        own, count = self._owned.pop(key, (torch.empty(0), 0))
        self._free[self._free_count : self._free_count + count] = own[:count]
        self._free_count += count

    def _slots(self, key: int, count: int) -> torch.Tensor:
        own, have = self._owned.get(key, (None, 0))
        if own is None:
            own = torch.empty(self._max_length, dtype=torch.long)
        lacking = count - have
        if lacking > self._free_count:
            raise MemoryError(f"{lacking} slots asked for, {self._free_count} are free")
        if lacking > 0:
            self._free_count -= lacking
            own[have:count] = self._free[self._free_count : self._free_count + lacking]
            self._owned[key] = (own, count)
        return own[:count]


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values, each of shape (slots, heads, head size)."""

    is_sliding = False  # whole sequences are kept; a model's own mask hides what left its window

    def __init__(self, cache: SlotCache, slots: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache
        self._count = slots

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes the layer's memory, on the device where it executes."""
        self.keys, self.values = (
            states.new_empty(self._count, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        for pool in (self.keys, self.values):
            pool[0] = 0
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values, (rows, heads, new, size); returns (rows, heads, width, size).

        A pass that is run again writes the same to the same slots.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        gather, written, fresh = self._layout.indices(key_states.device)
        return (
            _exchange(self.keys, key_states, gather, written, fresh),
            _exchange(self.values, value_states, gather, written, fresh),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many columns there are, and that they begin at the first."""
        return self._layout.past + query_length, 0

    def get_seq_length(self) -> int:
        """Returns how many columns are before the new ones."""
        return self._layout.past

    def get_max_length(self) -> int:
        """Returns that there is no length at which the layer forgets."""
        return -1

    @property
    def _layout(self) -> Layout:
        layout = self._cache.layout
        if layout is None:
            raise RuntimeError("no pass was laid out")
        return layout


def _exchange(
    pool: torch.Tensor | None,
    states: torch.Tensor,
    gather: torch.Tensor,
    written: torch.Tensor,
    fresh: torch.Tensor | None,
) -> torch.Tensor:
    if pool is None:
        raise RuntimeError("the layer has no memory yet")
    by_token = states.transpose(1, 2).flatten(0, 1)
    pool.index_copy_(0, written, by_token if fresh is None else by_token[fresh])
    rows = pool.index_select(0, gather.flatten()).view(*gather.shape, *pool.shape[1:])
    return rows.transpose(1, 2)
