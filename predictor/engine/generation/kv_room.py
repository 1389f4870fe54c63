"""Which sequences have room in the KV cache beside those that run: arithmetic over their lengths.

A newcomer needs room for its known tokens, but for those of a prefix that sequences which run own.
Besides it leaves room for `LOOKAHEAD` more tokens of each of those, so that none is preempted at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.kv_accounting import KVLedger
from predictor.engine.generation.prefixes import Prefixes
from predictor.engine.generation.scheduled_sequence import ScheduledSequence

LOOKAHEAD = 16
"""Tokens of room for each running sequence that a newcomer must leave."""


class KVRoom:
    """The room in the KV cache.

    Attributes:
        ledger: What the sequences that run have reserved.
    """

    def __init__(self, limits: SchedulerLimits, prefixes: Prefixes) -> None:
        """Begin with no sequence.

        Args:
            limits: The limits of the KV cache.
            prefixes: The tokens that sequences share.
        """
        self._limits, self._prefixes = limits, prefixes
        self.ledger = self._new_ledger(lambda: prefixes.shared)

    def fits(self, sequence: ScheduledSequence, running: int) -> bool:
        """Return whether a sequence has room beside all that run, which are so many."""
        return self._fits(sequence, self.ledger, running)

    def fits_beside(
        self, sequence: ScheduledSequence, others: Collection[ScheduledSequence]
    ) -> bool:
        """Return whether a sequence would have room if of those that run only these were left."""
        owned = self._prefixes.owned_by([other.key for other in others])
        blocks = frozenset(owned)
        shared = self._prefixes.block_tokens * (len(owned) - len(blocks))
        ledger = self._new_ledger(lambda: shared)
        for other in others:
            ledger.reserve(other.tokens)
        return self._fits(sequence, ledger, len(others), blocks)

    def _new_ledger(self, shared: Callable[[], int]) -> KVLedger:
        limits = self._limits
        return KVLedger(
            limits.kv_tokens if limits.keeps_tokens else None,
            window=limits.window,
            window_capacity=limits.window_tokens,
            shared=shared,
        )

    def _fits(
        self,
        sequence: ScheduledSequence,
        ledger: KVLedger,
        running: int,
        blocks: Collection[bytes] | None = None,
    ) -> bool:
        if ledger.has_room(sequence.tokens, running=running, growth=LOOKAHEAD):
            return True
        owned = self._prefixes.count_owned(sequence.key, sequence.tokens - 1, blocks)
        left = sequence.tokens - owned
        return owned > 0 and ledger.has_room(left, running=running, growth=LOOKAHEAD)
