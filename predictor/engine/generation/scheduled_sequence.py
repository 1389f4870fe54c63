"""One sequence as the scheduler counts it, and which of several go first.

Bulk work yields. While another request runs, a step computes no more of it than fits in
`SchedulerLimits.breakeven_tokens` together with that request's tokens: about as much as one more
forward pass over the weights costs. Sequences of it that decode go first. Its prompts get the rest,
if need be in smaller chunks. A chunk that begins or continues a state may not be cut, and is
computed once the rest of several steps is as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from predictor.engine.fair_queue import Entry
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits


@dataclass(slots=True, eq=False)
class ScheduledSequence(Entry):
    """A sequence; its tokens are those that are known.

    Attributes:
        cached: How many of them are cached.
        alone: Positions of those that are computed alone.
        is_replying: Whether a token of its reply is there.
    """

    cached: int = 0
    alone: range = range(0)
    is_replying: bool = False

    @property
    def left(self) -> int:
        """How many known tokens are not cached."""
        return self.tokens - self.cached

    def next_chunk(self, limits: SchedulerLimits, most: int | None = None) -> Chunk:
        """Return the tokens to compute next.

        Args:
            limits: The limits of a forward pass.
            most: Most tokens, if no state requires another number; None for no further limit.
        """
        room = limits.chunk - (self.cached % limits.chunk if limits.shares_states else 0)
        count = 1 if self.is_decoding(limits) else min(self.left, room)
        is_odd_first = limits.keeps_state and not limits.shares_states and not limits.one_by_one
        if is_odd_first and not self.cached:
            count = (self.left - 1) % limits.chunk + 1
        if most is not None and not limits.keeps_state:
            count = min(count, most)
        return Chunk(self.key, self.cached, count)

    def is_decoding(self, limits: SchedulerLimits) -> bool:
        """Return whether its next chunk is a single token that continues it."""
        if self.left == 1:
            return self.cached > 0 or not limits.keeps_state
        return self.left > 1 and self.cached > 0 and limits.one_by_one


class BulkShare:
    """What bulk work gets of each step.

    A chunk that may not be cut would never fit beside requests. What it leaves of a step is saved
    for it, until it fits. So bulk work gets no more of several steps than of each.
    """

    def __init__(self) -> None:
        """Begin with nothing saved."""
        self._saved = 0

    def participants(
        self, running: Iterable[ScheduledSequence], limits: SchedulerLimits
    ) -> list[tuple[ScheduledSequence, int | None]]:
        """Return the sequences that a step may compute tokens of, and how many; None for any.

        Args:
            running: All that run, in the order in which they were admitted.
            limits: The limits of a forward pass.
        """
        others: list[ScheduledSequence] = []
        bulk: list[ScheduledSequence] = []
        for sequence in running:
            (bulk if sequence.is_bulk else others).append(sequence)
        if not others or not bulk:
            self._saved = 0
            return [(sequence, None) for sequence in others or bulk]
        chosen: list[tuple[ScheduledSequence, int | None]] = [(other, None) for other in others]
        computed = sum(sequence.next_chunk(limits).count for sequence in others)
        budget = limits.breakeven_tokens - computed
        return chosen + self._choose(bulk, budget, limits) if budget >= 1 else chosen

    def _choose(
        self, bulk: Iterable[ScheduledSequence], budget: int, limits: SchedulerLimits
    ) -> list[tuple[ScheduledSequence, int | None]]:
        """Return what fits of bulk work, that which decodes first; save the rest if some does not.

        Args:
            bulk: All of it that runs.
            budget: Tokens of this step.
            limits: The limits of a forward pass.
        """
        chosen: list[tuple[ScheduledSequence, int | None]] = []
        budget, lacks_room = budget + self._saved, False
        for sequence in sorted(bulk, key=lambda sequence: not sequence.is_decoding(limits)):
            count = sequence.next_chunk(limits, budget).count
            if 0 < count <= budget:
                budget -= count
                chosen.append((sequence, count))
            else:
                lacks_room = True
        self._saved = min(budget, limits.chunk) if lacks_room else 0
        return chosen


def priority(sequence: ScheduledSequence) -> tuple[int, int, int, int]:
    """Return the order of prompts: those overtaken too often, by arrival; then the shortest.

    Bulk work comes last.
    """
    if sequence.is_due:
        return (sequence.is_bulk, 0, sequence.arrival, 0)
    return (sequence.is_bulk, 1, sequence.left, sequence.arrival)
