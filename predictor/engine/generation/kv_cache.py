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

Layers that keep a state have slots instead, see `state_slots`. If no layer keeps keys there are no
pages, and no columns but the new ones. No padding may come between a state and the new columns, so
rows that continue a state have equally many new tokens in a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Cache

from predictor.engine.generation.kv_accounting import BLOCK_TOKENS
from predictor.engine.generation.layout import Layout, SequenceChunk
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.paged_layers import PagedLayer, make_layer
from predictor.engine.generation.pages import PageTable
from predictor.engine.generation.state_cache import StateLayer
from predictor.engine.generation.state_slots import StateSlots
from predictor.private.cache_layers import CacheLayer


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
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        """Make an empty pool. A layer's memory is taken when it is first written.

        Args:
            layers: What each layer of the model keeps.
            pages: Tokens that the pool has pages for, including the padding; 0 if none is kept.
            max_length: Tokens of the longest sequence.
            slots: Sequences that the pool has slots for, if layers keep a state.
            window_pages: The same as `pages` for layers that attend to a window; 0 if they keep
                whole sequences.
            block_tokens: Tokens that sequences share or do not share as a whole.
        """
        self.layout: Layout | None = None
        self.gathers = False
        self._pads_single_rows = False
        self.states = StateSlots(slots)
        self._has_pages = pages > 0
        self.pages = PagePool(pages, max_length, block_tokens)
        windows = [layer.window_within(max_length) if window_pages else 0 for layer in layers]
        self._window = max(windows, default=0)
        self._window_pages = PageTable(window_pages, max_length) if self._window else None
        super().__init__(
            layers=[
                make_layer(self, layer, window_pages if window else pages, window)
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
    def can_share(self) -> bool:
        """Whether a sequence can go on from the first tokens of another.

        Nothing of them may have left a window. Their state has to be kept.
        """
        return self._window_pages is None and (self.keeps_tokens or self.keeps_state)

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
        if self.layout is not None and self.layout.lacks_padding:
            self._pads_single_rows = True
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
            # A row without padding needs no mask.
            pads_context=self.gathers or self._pads_single_rows or len(rows) > 1,
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


def _take(table: PageTable, rows: Sequence[SequenceChunk]) -> list[torch.Tensor]:
    return [table.take(row.key, row.end) for row in rows]
