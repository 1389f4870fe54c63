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
   never runs out.
   A model that keeps nothing of a token, but a state of each sequence, has no pages. Its sequences
   are not counted, and as many run as have slots.
5. **Reads**: a forward pass gathers padded rows, up to `Placement.max_attention_tokens`
   (`ATTENTION_PADDING_FACTOR` times the planned tokens). The plan counts these rows among the
   activations.

The metrics report the ledger's capacity (`predictor_kv_tokens_limit`) and the tokens that are
cached (`predictor_kv_tokens_used`), which are at most those reserved.
"""

from __future__ import annotations

PADDING_PAGES = 1
"""Pages of the pool that hold padding, which stays zero and belongs to no sequence."""


def usable_tokens(planned: int) -> int:
    """Return how many tokens sequences may cache in a pool of so many planned tokens."""
    return planned - PADDING_PAGES


class KVLedger:
    """The tokens that running sequences have reserved in the KV cache.

    Attributes:
        capacity: Tokens that may be reserved; None for any number.
        reserved: Tokens that are reserved.
    """

    def __init__(self, capacity: int | None) -> None:
        """Begin with nothing reserved."""
        self.capacity = capacity
        self.reserved = 0

    @property
    def is_overdrawn(self) -> bool:
        """Whether more is reserved than there is, so that a sequence must be preempted."""
        return self.capacity is not None and self.reserved > self.capacity

    def has_room(self, tokens: int) -> bool:
        """Return whether so many more tokens may be reserved."""
        return self.capacity is None or self.reserved + tokens <= self.capacity

    def reserve(self, tokens: int) -> None:
        """Reserve tokens."""
        self.reserved += tokens

    def release(self, tokens: int) -> None:
        """Return tokens that were reserved."""
        self.reserved -= tokens
