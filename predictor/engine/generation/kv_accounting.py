"""How the KV cache is counted: in tokens, from the plan to a forward pass.

1. **Bytes of a token** are measured for each block on the meta device
   (`profiling.decoder_probe`), because a formula over the config is wrong for many architectures.
2. **Tokens of the pool** are planned: `Placement.kv_tokens` is a multiple of `max_model_len`
   (`placement.demand`). The plan reserves tokens x bytes before anything is loaded.
3. **Pages**: the pool (`kv_cache.PagedKVCache`) has one page for each planned token. The padding
   takes `PADDING_PAGES` of them; sequences share the rest (`usable_tokens`). The longest sequence
   fits all the same, because the last token of a sequence is never cached.
4. **Reservations**: `KVLedger` is the only account of the use of the pool. The scheduler reserves
   the known tokens of a sequence before it runs, one more for each generated token, and returns
   them when the sequence ends or is preempted. The pool only maps reserved tokens to pages, so it
   never runs out. What several sequences own together (`prefix_cache`) takes pages once, and is
   counted once.
   A model that keeps nothing of a token, but a state of each sequence, has no pages. Its sequences
   are not counted, and as many run as have slots.
   Drafts take pages that nobody has reserved, until their forward pass has ended.
5. **Windows**: layers that attend to a window have a pool of `Placement.window_tokens` pages. A
   sequence keeps the tokens that are in the window, and its new tokens until a forward pass has
   ended. The ledger counts both pools.
6. **Reads**: a forward pass gathers padded rows, up to `Placement.max_attention_tokens`
   (`ATTENTION_PADDING_FACTOR` times the planned tokens). The plan counts these rows among the
   activations.

The metrics report the ledger's capacity (`predictor_kv_tokens_limit`) and the tokens that are
cached (`predictor_kv_tokens_used`), which are at most those reserved.
"""

from __future__ import annotations

from collections.abc import Callable

BLOCK_TOKENS = 16
"""Tokens that sequences share or do not share as a whole. So many of a prefix may be computed again
at most, which takes less than a forward pass over the weights."""

PADDING_PAGES = 1
"""Pages of the pool that hold padding, which stays zero and belongs to no sequence."""


def usable_tokens(planned: int) -> int:
    """Return how many tokens sequences may cache in a pool of so many planned tokens."""
    return planned - PADDING_PAGES


def usable_window_tokens(planned: int, whole: int, chunk: int) -> int:
    """Return how many tokens sequences may keep in layers that attend to a window.

    The new tokens of a forward pass take room for a chunk beside the windows of all sequences. A
    pool that is as large as that of whole sequences has room for all that is cached.

    Args:
        planned: Tokens of the pool of such layers; 0 without any.
        whole: Tokens of the pool of layers that keep whole sequences.
        chunk: Most new tokens of a forward pass that prefills.
    """
    return usable_tokens(whole) if planned == whole else max(0, planned - chunk)


class KVLedger:
    """The tokens that running sequences have reserved in the KV cache.

    Attributes:
        capacity: Tokens that may be reserved; None for any number.
        reserved: Tokens that are reserved.
        window: Tokens of one sequence that layers with a window keep; 0 if all layers keep all.
        window_capacity: Tokens that may be reserved in these layers.
        windowed: Tokens that are reserved there.
    """

    def __init__(
        self,
        capacity: int | None,
        *,
        window: int = 0,
        window_capacity: int = 0,
        shared: Callable[[], int] = int,
    ) -> None:
        """Begin with nothing reserved.

        Args:
            capacity: Tokens that may be reserved; None for any number.
            window: Tokens of one sequence that layers with a window keep; 0 if all layers keep all.
            window_capacity: Tokens that may be reserved in these layers.
            shared: Returns how many of the reserved tokens take no pages of their own.
        """
        self.capacity = capacity
        self.reserved = 0
        self.window, self.window_capacity = window, window_capacity
        self.windowed = 0
        self._shared = shared

    @property
    def is_overdrawn(self) -> bool:
        """Whether more is reserved than there is, so that a sequence must be preempted."""
        if self.capacity is None:
            return False
        taken = self.reserved - self._shared()
        return taken > self.capacity or self.windowed > self.window_capacity

    @property
    def room(self) -> int:
        """Tokens that are not reserved, which drafts may take during a step."""
        if self.capacity is None:
            return 0
        return max(0, self.capacity - self.reserved + self._shared())

    def has_room(self, tokens: int, *, running: int = 0, growth: int = 0) -> bool:
        """Return whether a sequence of so many tokens may be added.

        Args:
            tokens: Its tokens.
            running: How many sequences have tokens reserved.
            growth: Tokens by which each of those may grow.
        """
        if self.capacity is None:
            return True
        grown = min(self.windowed + growth * running, self.window * running)
        return (
            self.reserved - self._shared() + growth * running + tokens <= self.capacity
            and grown + min(tokens, self.window) <= self.window_capacity
        )

    def reserve(self, tokens: int, *, after: int = 0) -> None:
        """Reserve tokens of a sequence, which follow others that are reserved already."""
        self.reserved += tokens
        self.windowed += min(after + tokens, self.window) - min(after, self.window)

    def release(self, tokens: int) -> None:
        """Return all tokens of a sequence."""
        self.reserved -= tokens
        self.windowed -= min(tokens, self.window)
