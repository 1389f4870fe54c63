"""The layers of the KV cache: what the model reads and writes in a forward pass.

A layer writes what is new of its tokens to their pages and returns whole rows, see `kv_cache`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin  # public: `transformers` exports it, untyped

from predictor.engine.generation.cached_rows import CachedRows
from predictor.engine.generation.kv_accounting import PADDING_PAGES
from predictor.engine.generation.layout import Layout
from predictor.engine.generation.row_source import Source
from predictor.engine.generation.state_cache import StateLayer
from predictor.private.cache_layers import (
    EMPTY_KINDS,
    HYBRID_KINDS,
    INDEXED_KINDS,
    STATE_KINDS,
    CacheLayer,
    DummyLayer,
)

if TYPE_CHECKING:
    from predictor.engine.generation.kv_cache import PagedKVCache


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
        self.keys, self.values = (self._new_pool(states) for states in (key_states, value_states))
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

    def _new_pool(self, states: torch.Tensor) -> torch.Tensor:
        pool = states.new_empty(states.shape[1], self._pages, states.shape[3])
        pool[:, :PADDING_PAGES] = 0
        return pool

    def _exchange(self, pool: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        if pool is None:
            raise RuntimeError("the layer has no memory yet")
        source = self._write(pool, states)
        if self._cache.gathers or pool.device.type != "cpu":
            return source.gathered()
        return CachedRows.of(source)

    def _write(self, pool: torch.Tensor, states: torch.Tensor) -> Source:
        """Write to the pages of new tokens; return where whole rows are."""
        indices = self._layout.indices(pool.device, self._window)
        by_token, fresh = states.transpose(0, 1).flatten(1, 2), indices.fresh
        pool.index_copy_(1, indices.written, by_token if fresh is None else by_token[:, fresh])
        return Source(pool, self._layout, self._window)

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


class IndexedLayer(PagedLayer):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, and the keys by which its indexer chooses among them."""

    def __init__(self, cache: PagedKVCache, pages: int, window: int) -> None:
        """Make an empty layer of a pool, see `PagedLayer`."""
        super().__init__(cache, pages, window)
        self._indexer_pool: torch.Tensor | None = None

    @property
    def indexer_position_ids(self) -> torch.Tensor | None:
        """The positions of all columns before the new ones, of shape (dimensions, rows, columns).

        Models that store three positions of each token count the same ones in a text.
        """
        if self.keys is None or not self._layout.past:
            return None
        return self._layout.past_positions().to(self.keys.device).expand(3, -1, -1)

    @indexer_position_ids.setter
    def indexer_position_ids(self, _: torch.Tensor | None) -> None:
        """Keep none: the layout knows them."""

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Write new keys of the indexer, and return those of whole rows.

        Args:
            indexer_key_states: New keys, of shape (rows, new, size).

        Returns:
            Keys of shape (rows, columns, size).
        """
        states = indexer_key_states[:, None]
        if self._indexer_pool is None:
            self._indexer_pool = self._new_pool(states)
        return self._write(self._indexer_pool, states).gathered()[:, 0]


def make_layer(cache: PagedKVCache, layer: CacheLayer, pages: int, window: int) -> Any:
    """Return an empty layer.

    Args:
        cache: The pool.
        layer: What the layer of the model keeps.
        pages: Tokens that the pool has pages for.
        window: Positions that a token attends to, see `PagedLayer`.
    """
    if layer.kind in EMPTY_KINDS:
        return DummyLayer()  # type: ignore[no-untyped-call]
    if layer.kind in STATE_KINDS:
        return StateLayer(cache.states, layer.states)
    if layer.kind in HYBRID_KINDS:
        return HybridLayer(cache, pages, window, layer.states)
    if layer.kind in INDEXED_KINDS:
        return IndexedLayer(cache, pages, window)
    return PagedLayer(cache, pages, window)
