"""What a placement is for whose engine computes bulk work alone."""

from __future__ import annotations

from dataclasses import dataclass

BATCH_SIZES = (256, 128, 64)
"""Sequences of a batch, the first of which fits. A pass over offloaded weights serves all of them,
and nobody waits for a single one; above some hundreds the computing takes longer than the pass."""


@dataclass(frozen=True, slots=True)
class BatchGoal:
    """A batch that is to run as a whole.

    Attributes:
        sizes: Most sequences of a batch; the first that fits is taken.
        tokens: Tokens of a sequence with its reply, about.
    """

    sizes: tuple[int, ...]
    tokens: int
