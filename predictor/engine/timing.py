"""The cost of a forward pass, measured once when the model has been loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from predictor.engine.thread_tuner import leave_one_factor

ForwardPass = Callable[[int], object]
"""Runs a forward pass of so many tokens of one sequence, and waits for its end."""

_SLOW = 0.3
"""Seconds from which a forward pass is timed once: noise matters little then, and time at start."""

_SMALL = 2**30
"""Bytes of weights below which a slow forward pass tells of a busy node, not of a large model."""


@dataclass(frozen=True, slots=True)
class PassCost:
    """The cost of a forward pass over the weights.

    Attributes:
        seconds: Of one token.
        breakeven_tokens: Tokens that take as long to compute, in addition to it.
    """

    seconds: float
    breakeven_tokens: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that forward passes take.

    Attributes:
        one: Of one token.
        many: Of `tokens` tokens.
        tokens: How many.
    """

    one: float
    many: float
    tokens: int

    def breakeven_tokens(self, most: int) -> int:
        """Return how many tokens take as long to compute as one forward pass over the weights.

        Args:
            most: The bound of the result.
        """
        if self.tokens < 2:
            return 0
        per_token = max((self.many - self.one) / (self.tokens - 1), self.one / most)
        return min(most, int(self.one / per_token))


def time_forward_passes(run: ForwardPass, tokens: int, *, weights: int = 0) -> Times:
    """Time forward passes, and leave a processor to the server if that slows the model little.

    The number of threads is a start: `thread_tuner` corrects it on real forward passes. So a large
    model, for which a forward pass takes long, is not tried with fewer threads here.

    Args:
        run: Runs a forward pass.
        tokens: Tokens of the longer of the two forward passes that are timed.
        weights: Bytes of the model's weights.
    """
    times = _times(run, tokens)
    threads = torch.get_num_threads()
    if threads == 1 or (weights > _SMALL and times.one > _SLOW):
        return times
    torch.set_num_threads(threads - 1)
    fewer = _times(run, tokens)
    pairs = ((fewer.one, times.one), (fewer.many, times.many))
    if all(slower <= leave_one_factor(threads, usual) * usual for slower, usual in pairs):
        return fewer
    torch.set_num_threads(threads)
    return times


def time_longer(run: ForwardPass, times: Times, tokens: int) -> Times:
    """Return the times with a longer forward pass, if it may take no longer than two short ones."""
    if times.breakeven_tokens(tokens) < tokens:
        return times
    return Times(times.one, _seconds(run, tokens), tokens)


def _times(run: ForwardPass, tokens: int) -> Times:
    one, many = (_seconds(run, count) for count in (1, tokens))
    return Times(one, many, tokens)


def _seconds(run: ForwardPass, count: int) -> float:
    """The quickest of a few forward passes; the first may have to fill caches for the others."""
    taken: list[float] = []
    while len(taken) < 3 and max(taken, default=0.0) < _SLOW:
        began = time.perf_counter()
        run(count)
        taken.append(time.perf_counter() - began)
    return min(taken)
