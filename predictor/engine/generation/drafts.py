"""How many draft tokens each sequence has in a forward pass: arithmetic over costs and rates.

A *draft* is a guess at the tokens that follow the known ones. A forward pass computes it together
with the last known token, and verifies it: the drafts that are sampled are accepted, and the others
are dropped (`verification`). So one pass over the weights may give a sequence several tokens.

A draft costs the computation of its tokens, and that of as many columns of padding in all other
rows. Drafts of a draft model cost its forward passes besides, one for each column. The gain of a
draft is what it is expected to be accepted of, by the rate at which the last drafts of the sequence
were. `add_drafts` takes the number of columns that gives the most tokens per time, with the draft
model or without it. As sequences come, columns cost more, so drafts fade out; text that never
repeats has none of lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits

LEAST_GAIN = 1.05
"""Tokens per time with drafts, as a multiple of those without, below which there are none. The
costs are measured at the start, and are no more exact than that."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A draft of one sequence, without its tokens.

    Attributes:
        count: How many tokens it has.
        rate: The expected fraction of its tokens that are accepted, each if those before it are.
        is_model: Whether the draft model has yet to compute its tokens.
    """

    count: int
    rate: float
    is_model: bool = False

    def expected(self, most: int) -> float:
        """Return how many tokens are expected to be accepted if so many are computed at most."""
        count = min(self.count, most)
        if self.rate >= 1:
            return count
        return self.rate * (1 - self.rate**count) / (1 - self.rate)


NOTHING = Proposal(0, 0.0)
"""An empty draft."""


class Drafts(Protocol):
    """Proposes drafts; see `drafter.Drafter`."""

    def allows(self, rows: int) -> bool:
        """Begin a step of so many sequences, and return whether it may have drafts."""
        ...

    def propose(self, key: int, most: int) -> Proposal:
        """Propose a draft of a sequence, of so many tokens at most, and keep its tokens."""
        ...


class NoDrafts:
    """Proposes nothing."""

    def allows(self, rows: int) -> bool:  # noqa: ARG002
        """Return that there are none."""
        return False

    def propose(self, key: int, most: int) -> Proposal:  # noqa: ARG002
        """Return an empty draft."""
        return NOTHING


def add_drafts(
    decode: Sequence[Chunk], drafts: Drafts, limits: SchedulerLimits, room: int
) -> list[Chunk]:
    """Return the chunks with the drafts that pay.

    Args:
        decode: Chunks of one token each.
        drafts: Proposes the drafts.
        limits: The limits of a forward pass, and its cost.
        room: Tokens that all drafts together may take in the KV cache.
    """
    most = min(most_drafts(len(decode), limits), room)
    if not drafts.allows(len(decode)) or most < 1:
        return list(decode)
    proposals = [drafts.propose(chunk.key, most) for chunk in decode]
    chosen, columns = _choose(proposals, limits)
    chunks = []
    for chunk, proposal in zip(decode, chosen, strict=True):
        count = min(proposal.count, columns, room)
        room -= count
        chunks.append(Chunk(chunk.key, chunk.start, chunk.count + count, count))
    return chunks


def most_drafts(rows: int, limits: SchedulerLimits) -> int:
    """Return how many drafts each of so many rows may have, if any pay."""
    if not rows:
        return 0
    most = min(limits.draft_tokens, limits.breakeven_tokens - 1)
    while most > 0 and not (limits.can_draft(rows, most) and limits.can_prefill(rows, 1 + most)):
        most -= 1
    return most


def _choose(
    proposals: Sequence[Proposal], limits: SchedulerLimits
) -> tuple[Sequence[Proposal], int]:
    """Return the proposals, all or those without the draft model, and the columns of the best."""
    columns, speed = _best_columns(proposals, limits)
    if not any(proposal.is_model for proposal in proposals):
        return proposals, columns
    without = [NOTHING if proposal.is_model else proposal for proposal in proposals]
    fewer, slower = _best_columns(without, limits)
    return (without, fewer) if slower >= speed else (proposals, columns)


def _best_columns(proposals: Sequence[Proposal], limits: SchedulerLimits) -> tuple[int, float]:
    """Return the columns of drafts that give the most tokens per time, and how many these are.

    There are 0 columns if none pay.
    """
    rows = len(proposals)
    counts = [proposal.count for proposal in proposals if proposal.is_model]

    def tokens_per_time(columns: int) -> float:
        tokens = rows + sum(proposal.expected(columns) for proposal in proposals)
        time = limits.breakeven_tokens + limits.computed_tokens(rows, 1 + columns)
        passes = min(columns, max(counts, default=0))
        return tokens / (time + passes * limits.draft_model_cost.of(len(counts)))

    plain = tokens_per_time(0)
    columns = range(1, 1 + max(proposal.count for proposal in proposals))
    best = max(columns, key=tokens_per_time, default=0)
    speed = tokens_per_time(best)
    return (best, speed) if best and speed >= LEAST_GAIN * plain else (0, plain)
