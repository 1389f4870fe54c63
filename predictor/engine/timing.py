"""What a pass costs, measured once when the model has been loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Pass = Callable[[int], object]
"""Runs a pass of so many tokens of one sequence, and waits for its end."""

_SLOW = 0.3
"""Seconds from which a pass is timed once: then chance changes little, and starting takes long."""

_LITTLE = 1 / 3
"""What a thread fewer may cost, as a fraction of what it costs where every thread counts."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that passes take.

    Attributes:
        one: Of one token.
        many: Of `tokens` tokens.
        tokens: How many.
    """

    one: float
    many: float
    tokens: int

    def breakeven_tokens(self, most: int) -> int:
        """Returns how many tokens' computation takes as long as one pass over the weights.

        Args:
            most: The result's bound.
        """
        if self.tokens < 2:
            return 0
        per_token = max((self.many - self.one) / (self.tokens - 1), self.one / most)
        return min(most, int(self.one / per_token))


def time_passes(run: Pass, tokens: int) -> Times:
    """Times passes, and leaves a processor to the server where that costs the model little.

    Threads that compute wait for each other. Where the server's own work takes a processor from
    one of them they all stand still, so a small model is slower with a thread on every processor.

    Args:
        run: Runs a pass.
        tokens: Those of the longer of the two passes that are timed.
    """
    found = _times(run, tokens)
    threads = torch.get_num_threads()
    if threads == 1 or found.one > _SLOW:
        return found
    torch.set_num_threads(threads - 1)
    fewer = _times(run, tokens)
    at_most = 1 + _LITTLE / (threads - 1)
    if fewer.one <= at_most * found.one and fewer.many <= at_most * found.many:
        return fewer
    torch.set_num_threads(threads)
    return found


def _times(run: Pass, tokens: int) -> Times:
    one, many = (_seconds(run, count) for count in (1, tokens))
    return Times(one, many, tokens)


def _seconds(run: Pass, count: int) -> float:
    """Of the quickest of a few passes; the first may have to make what the others find."""
    taken: list[float] = []
    while len(taken) < 3 and max(taken, default=0.0) < _SLOW:
        began = time.perf_counter()
        run(count)
        taken.append(time.perf_counter() - began)
    return min(taken)
