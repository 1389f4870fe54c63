"""The KV cache: one pool of pages for all sequences, which the model sees as one padded batch.

A page holds the keys and values of one token in every layer. Each layer has a tensor for keys and
one for values with a page for every planned token (`kv_accounting` says how many that are). They
never grow. `page_pool` gives pages to sequences. For a forward pass the tokens of its sequences are
laid out as rows that end together:

    row 0   . . . . p p p p p p n      p: cached    n: new
    row 1   . . p p p p n n n n n      .: padding (page 0, which stays zero)

The model computes the new columns alone, with a mask that hides the padding. A layer writes its new
keys and values to their pages and returns whole rows. transformers calls that left padding, so it
works for every architecture that can be batched at all, ALiBi among them. Padding is never written,
so no row can see another, whatever is computed there.

On a processor, rows are not copied if the model gives them to PyTorch's attention (`cached_rows`).
Else, they are gathered.

Layers that attend to a window have a pool of their own, with a second table of pages. After a
forward pass, its sequences give back the pages of tokens that have left the window. The columns of
such a layer begin where the window of the first new column does. A model's own mask hides what is
outside of the windows of later columns.

Layers that keep a state have slots instead, see `state_cache`. If no layer keeps keys there are no
pages, and no columns but the new ones. No padding may come between a state and the new columns, so
rows that continue a state have equally many new tokens in a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin  # public: `transformers` exports it, untyped

from predictor.engine.generation.cached_rows import CachedRows, Source
from predictor.engine.generation.kv_accounting import PADDING_PAGES
from predictor.engine.generation.layout import Layout, SequenceChunk
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.pages import PageTable
from predictor.engine.generation.state_cache import StateLayer, StateSlots
from predictor.private.cache_layers import (
    EMPTY_KINDS,
    HYBRID_KINDS,
    STATE_KINDS,
    CacheLayer,
    DummyLayer,
)


class PagedKVCache(Cache):
    """A transformers cache over the pool. Call `lay_out` before each forward pass.

    Attributes:
        layout: The layout of the forward pass that runs.
        gathers: Whether rows are gathered always.
        states: The slots of layers that keep a state.
        pages: The owners of the pages.
    """

    def __init__(
        self,
        layers: Sequence[CacheLayer],
        pages: int,
        max_length: int,
        *,
        slots: int = 0,
        window_pages: int = 0,
    ) -> None:
        """Make an empty pool. A layer's memory is taken when it is first written.

        Args:
            layers: What each layer of the model keeps.
            pages: Tokens that the pool has pages for, including the padding; 0 if none is kept.
            max_length: Tokens of the longest sequence.
            slots: Sequences that the pool has slots for, if layers keep a state.
            window_pages: The same as `pages` for layers that attend to a window; 0 if they keep
                whole sequences.
        """
        self.layout: Layout | None = None
        self.gathers = False
        self.states = StateSlots(slots)
        self._has_pages = pages > 0
        self.pages = PagePool(pages, max_length)
        windows = [layer.window_within(max_length) if window_pages else 0 for layer in layers]
        self._window = max(windows, default=0)
        self._window_pages = PageTable(window_pages, max_length) if self._window else None
        super().__init__(
            layers=[
                _layer(self, layer, window_pages if window else pages, window)
                for layer, window in zip(layers, windows, strict=True)
            ]
        )

    @property
    def is_linear(self) -> list[bool]:
        """Whether each layer has a state and no keys."""
        return [
            isinstance(layer, StateLayer) and not isinstance(layer, PagedLayer)
            for layer in self.layers
        ]

    @property
    def keeps_state(self) -> bool:
        """Whether a layer keeps a state."""
        return bool(self.states.layers)

    @property
    def keeps_tokens(self) -> bool:
        """Whether a layer keeps keys and values."""
        return self._has_pages and any(isinstance(layer, PagedLayer) for layer in self.layers)

    @property
    def keeps_every_position(self) -> bool:
        """Whether all that is kept of a sequence is keys and values, and those of all its tokens.

        If not, nothing can be computed again from a token on, and no sequence can go on from the
        first tokens of another.
        """
        return not self.keeps_state and self._window_pages is None

    @property
    def free_pages(self) -> int:
        """How many pages no sequence owns."""
        return self.pages.free

    @property
    def free_window_pages(self) -> int:
        """How many pages of the pool for windows no sequence owns."""
        return 0 if self._window_pages is None else self._window_pages.free

    def owned_pages(self, key: int) -> list[int]:
        """Return the pages of a sequence, in the order of its tokens."""
        return self.pages.owned(key)

    def holds(self, key: int) -> bool:
        """Return whether a sequence that has begun can be continued."""
        if self._window_pages is not None and not self._window_pages.owns(key):
            return False
        return not self.keeps_state or self.states.owns(key)

    def lay_out(self, rows: Sequence[SequenceChunk], *, bucket_shapes: bool = False) -> Layout:
        """Give the rows the pages that they lack, and return the layout of the next forward pass.

        Args:
            rows: The rows.
            bucket_shapes: Whether forward passes come in few shapes, see `Layout`.

        Raises:
            MemoryError: There are not enough pages: the rows were not within the `KVLedger`.
        """
        continues = self.keeps_state and rows[0].start > 0
        if self.keeps_state:
            if any((row.start > 0) != continues for row in rows):
                raise ValueError("rows that begin and rows that continue a state share no pass")
            self.states.begin([row.key for row in rows], continues=continues)
        self.layout = Layout(
            rows,
            _take(self.pages, rows) if self.keeps_tokens else None,
            window_pages=None if self._window_pages is None else _take(self._window_pages, rows),
            bucket_shapes=bucket_shapes,
            pads_new=not continues,
        )
        return self.layout

    def forget(self, rows: Sequence[SequenceChunk]) -> None:
        """Free the pages of tokens that left the window of all layers in a pass that succeeded."""
        if self._window_pages is not None:
            for row in rows:
                self._window_pages.forget(row.key, row.known_end - (self._window - 1))

    def truncate(self, key: int, end: int) -> None:
        """Free the pages of a sequence's tokens from a position on, which were drafts."""
        self.pages.truncate(key, end)
        if self._window_pages is not None:
            self._window_pages.truncate(key, end)
            self._window_pages.forget(key, end - (self._window - 1))

    def release(self, key: int) -> None:
        """Free the pages and the slot of a sequence."""
        self.states.release(key)
        self.pages.release(key)
        if self._window_pages is not None:
            self._window_pages.release(key)


class PagedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, each of shape (heads, pages, head size)."""

    def __init__(self, cache: PagedKVCache, pages: int, window: int = 0) -> None:
        """Make an empty layer of a pool.

        Args:
            cache: The pool.
            pages: Tokens that it has pages for.
            window: Positions that a token attends to, its own among them; 0 if whole sequences are
                kept, and a model's own mask hides what left its window.
        """
        CacheLayerMixin.__init__(self)  # type: ignore[no-untyped-call]
        self.is_sliding = window > 0  # transformers takes the size of masks from such a layer
        self._cache = cache
        self._pages = pages
        self._window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the layer's memory, on the device where it executes."""
        self.keys, self.values = (
            states.new_empty(states.shape[1], self._pages, states.shape[3])
            for states in (key_states, value_states)
        )
        for pool in (self.keys, self.values):
            pool[:, :PADDING_PAGES] = 0
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values, and return those of whole rows, or of their windows.

        A forward pass that is run again writes the same to the same pages.

        Args:
            key_states: New keys, of shape (rows, heads, new, size).
            value_states: New values, likewise.

        Returns:
            Keys and values, each of shape (rows, heads, columns, size).
        """
        if not self.is_initialized:
            PagedLayer.lazy_initialization(self, key_states, value_states)
        return self._exchange(self.keys, key_states), self._exchange(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns there are, and the first of them."""
        past = self._layout.past_within(self._window)
        return past + query_length, self._layout.past - past

    def get_seq_length(self) -> int:
        """Return how many columns are before the new ones."""
        return self._layout.past

    def get_max_length(self) -> int:
        """Return that there is no length at which the layer forgets."""
        return -1

    def _exchange(self, pool: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        if pool is None:
            raise RuntimeError("the layer has no memory yet")
        layout = self._layout
        indices = layout.indices(pool.device, self._window)
        by_token, fresh = states.transpose(0, 1).flatten(1, 2), indices.fresh
        pool.index_copy_(1, indices.written, by_token if fresh is None else by_token[:, fresh])
        source = Source(pool, layout, self._window)
        if self._cache.gathers or pool.device.type != "cpu":
            return source.gathered()
        return CachedRows.of(source, len(states), layout.past_within(self._window) + layout.new)

    @property
    def _layout(self) -> Layout:
        layout = self._cache.layout
        if layout is None:
            raise RuntimeError("no pass was laid out")
        return layout


class HybridLayer(StateLayer, PagedLayer):  # type: ignore[override, no-untyped-call]
    """The states of one layer, and its keys and values."""

    def __init__(self, cache: PagedKVCache, pages: int, window: int, states: int) -> None:
        """Make an empty layer of a pool, see `PagedLayer` and `StateLayer`."""
        PagedLayer.__init__(self, cache, pages, window)
        StateLayer.__init__(self, cache.states, states)


def _take(table: PageTable, rows: Sequence[SequenceChunk]) -> list[torch.Tensor]:
    return [table.take(row.key, row.end) for row in rows]


def _layer(cache: PagedKVCache, layer: CacheLayer, pages: int, window: int) -> Any:
    if layer.kind in EMPTY_KINDS:
        return DummyLayer()  # type: ignore[no-untyped-call]
    if layer.kind in STATE_KINDS:
        return StateLayer(cache.states, layer.states)
    if layer.kind in HYBRID_KINDS:
        return HybridLayer(cache, pages, window, layer.states)
    return PagedLayer(cache, pages, window)
