"""One sequence as the scheduler counts it, and which of several go first.

Bulk work yields. While another request runs, a step computes no more of it than fits in
`SchedulerLimits.breakeven_tokens` together with that request's tokens: about as much as one more
forward pass over the weights costs. Sequences of it that decode go first. Its prompts get the rest,
if need be in smaller chunks; a prompt that begins a state is computed only if its chunk fits whole.
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
        count = 1 if self.is_decoding(limits) else min(self.left, limits.chunk)
        if limits.keeps_state and not limits.one_by_one and not self.cached:
            count = (self.left - 1) % limits.chunk + 1
        if most is not None and not limits.keeps_state:
            count = min(count, most)
        return Chunk(self.key, self.cached, count)

    def is_decoding(self, limits: SchedulerLimits) -> bool:
        """Return whether its next chunk is a single token that continues it."""
        if self.left == 1:
            return self.cached > 0 or not limits.keeps_state
        return self.left > 1 and self.cached > 0 and limits.one_by_one


def participants(
    running: Iterable[ScheduledSequence], limits: SchedulerLimits
) -> list[tuple[ScheduledSequence, int | None]]:
    """Return the sequences that the next step may compute tokens of, and how many; None for any.

    Args:
        running: All that run, in the order in which they were admitted.
        limits: The limits of a forward pass.
    """
    others: list[ScheduledSequence] = []
    bulk: list[ScheduledSequence] = []
    for sequence in running:
        (bulk if sequence.is_bulk else others).append(sequence)
    if not others or not bulk:
        return [(sequence, None) for sequence in others or bulk]
    chosen: list[tuple[ScheduledSequence, int | None]] = [(other, None) for other in others]
    budget = limits.breakeven_tokens
    budget -= sum(sequence.next_chunk(limits).count for sequence in others)
    for sequence in sorted(bulk, key=lambda sequence: not sequence.is_decoding(limits)):
        if budget < 1:
            break
        count = sequence.next_chunk(limits, budget).count
        if count <= budget:
            budget -= count
            chosen.append((sequence, count))
    return chosen


def priority(sequence: ScheduledSequence) -> tuple[int, int, int, int]:
    """Return the order of prompts: those overtaken too often, by arrival; then the shortest.

    Bulk work comes last.
    """
    if sequence.is_due:
        return (sequence.is_bulk, 0, sequence.arrival, 0)
    return (sequence.is_bulk, 1, sequence.left, sequence.arrival)
