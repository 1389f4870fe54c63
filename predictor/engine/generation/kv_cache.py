"""The KV cache: one pool of pages for all sequences, which the model sees as one padded batch.

A page holds the keys and values of one token in every layer. Each layer has a tensor for keys and
one for values with a page for every planned token (`kv_accounting` says how many that are). They
never grow. A sequence owns any free pages. For a forward pass the tokens of its sequences are laid
out as rows that end together:

    row 0   . . . . p p p p p p n      p: cached    n: new
    row 1   . . p p p p n n n n n      .: padding (page 0, which stays zero)

The model computes the new columns alone, with a mask that hides the padding. A layer writes its new
keys and values to their pages and gathers whole rows. transformers calls that left padding, so it
works for every architecture that can be batched at all, ALiBi among them. Padding is never written,
so no row can see another, whatever is computed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin  # public: `transformers` exports it, untyped

from predictor.engine.generation.kv_accounting import PADDING_PAGES, usable_tokens
from predictor.shape_buckets import bucket_context, bucket_new_tokens


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """New tokens of one sequence: a row of a forward pass.

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
        """How many tokens are cached after the forward pass."""
        return self.start + len(self.tokens)


class Layout:
    """The pages and columns of the tokens of one forward pass.

    Attributes:
        past: Columns before the new ones.
        new: Columns that the model computes.
        lengths: Tokens of each row, of shape (rows,).
    """

    def __init__(
        self,
        rows: Sequence[SequenceChunk],
        pages: Sequence[torch.Tensor],
        *,
        bucket_shapes: bool = False,
    ) -> None:
        """Lay out rows.

        Args:
            rows: The rows.
            pages: For each row the pages of all its tokens, of shape (tokens,).
            bucket_shapes: Whether to add columns of padding up to the next of a few shapes, see
                `shape_buckets`.
        """
        self.new, width = max(len(row.tokens) for row in rows), max(row.end for row in rows)
        if bucket_shapes:
            self.new, width = bucket_new_tokens(self.new), bucket_context(width)
        self.past = width - self.new
        self.lengths = torch.tensor([row.end for row in rows])
        gather = torch.zeros(len(rows), width, dtype=torch.long)
        for index, own in enumerate(pages):
            gather[index, width - len(own) :] = own
        written = torch.cat([own[row.start :] for row, own in zip(rows, pages, strict=True)])
        fresh = [
            torch.arange((index + 1) * self.new - len(row.tokens), (index + 1) * self.new)
            for index, row in enumerate(rows)
        ]
        is_padded = len(written) < len(rows) * self.new
        self._host = (gather, written, torch.cat(fresh) if is_padded else None)
        self._by_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor, Any]] = {}

    def indices(
        self, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the indices of the forward pass on a device.

        They are: the pages to gather, of shape (rows, width); the pages to write, of shape
        (tokens,); and which of the computed columns are written there, of shape (tokens,), or None
        for all of them.
        """
        if device not in self._by_device:
            gather, written, fresh = self._host
            self._by_device[device] = (
                gather.to(device),
                written.to(device),
                None if fresh is None else fresh.to(device),
            )
        return self._by_device[device]


class PagedKVCache(Cache):
    """A transformers cache over the pool. Call `lay_out` before each forward pass."""

    def __init__(self, layers: int, pages: int, max_length: int) -> None:
        """Make an empty pool. A layer's memory is taken when it is first written.

        Args:
            layers: Layers of the model.
            pages: Tokens that the pool has pages for, including the padding.
            max_length: Tokens of the longest sequence.
        """
        self.layout: Layout | None = None
        self._free = torch.arange(pages - 1, PADDING_PAGES - 1, -1)
        self._free_count = usable_tokens(pages)
        self._max_length = max_length
        self._owned: dict[int, tuple[torch.Tensor, int]] = {}
        super().__init__(layers=[_Layer(self, pages) for _ in range(layers)])

    @property
    def free_pages(self) -> int:
        """How many pages no sequence owns."""
        return self._free_count

    def owned_pages(self, key: int) -> list[int]:
        """Return the pages of a sequence, in the order of its tokens."""
        own, count = self._owned[key]
        pages: list[int] = own[:count].tolist()
        return pages

    def lay_out(self, rows: Sequence[SequenceChunk], *, bucket_shapes: bool = False) -> Layout:
        """Give the rows the pages that they lack, and return the layout of the next forward pass.

        Args:
            rows: The rows.
            bucket_shapes: Whether forward passes come in few shapes, see `Layout`.

        Raises:
            MemoryError: There are not enough pages: the rows were not within the `KVLedger`.
        """
        pages = [self._take_pages(row.key, row.end) for row in rows]
        self.layout = Layout(rows, pages, bucket_shapes=bucket_shapes)
        return self.layout

    def release(self, key: int) -> None:
        """Free the pages of a sequence."""
        own, count = self._owned.pop(key, (torch.empty(0), 0))
        self._free[self._free_count : self._free_count + count] = own[:count]
        self._free_count += count

    def _take_pages(self, key: int, count: int) -> torch.Tensor:
        """The pages of a sequence's first tokens; those that it lacks are taken."""
        own, have = self._owned.get(key, (None, 0))
        if own is None:
            own = torch.empty(self._max_length, dtype=torch.long)
        lacking = count - have
        if lacking > self._free_count:
            raise MemoryError(f"{lacking} KV pages needed, {self._free_count} are free")
        if lacking > 0:
            self._free_count -= lacking
            own[have:count] = self._free[self._free_count : self._free_count + lacking]
            self._owned[key] = (own, count)
        return own[:count]


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, each of shape (pages, heads, head size)."""

    is_sliding = False  # whole sequences are kept; a model's own mask hides what left its window

    def __init__(self, cache: PagedKVCache, pages: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache
        self._pages = pages

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the layer's memory, on the device where it executes."""
        self.keys, self.values = (
            states.new_empty(self._pages, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        for pool in (self.keys, self.values):
            pool[:PADDING_PAGES] = 0
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values, and return those of whole rows.

        A forward pass that is run again writes the same to the same pages.

        Args:
            key_states: New keys, of shape (rows, heads, new, size).
            value_states: New values, likewise.

        Returns:
            Keys and values, each of shape (rows, heads, width, size).
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        gather, written, fresh = self._layout.indices(key_states.device)
        return (
            _exchange(self.keys, key_states, gather, written, fresh),
            _exchange(self.values, value_states, gather, written, fresh),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns there are, and that they begin at the first."""
        return self._layout.past + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many columns are before the new ones."""
        return self._layout.past

    def get_max_length(self) -> int:
        """Return that there is no length at which the layer forgets."""
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
