"""Time the kernels of linear layers in place: in forward passes of the model itself.

A trial stands where a kernel would: each call of a layer computes with another of the candidates,
and is timed. So kernels are compared on the layers' own weights, which come from memory or from
wherever else as they do when the model serves, and no memory is needed that is not planned.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from predictor.linear.kernels import Kernel
from predictor.linear.weight import LinearWeight

_CALLS = 4
"""Calls of each candidate. The quickest counts: neighbours on the node only ever add to a time."""

_HOPELESS = 1.5
"""Factor behind the best from which a candidate gets no further call. The first one that it gets
may have to compile, so it takes two to know."""

_ABANDONED = 4.0
"""The same after a single call: no kernel takes that long to compile."""

_WIN = 0.93
"""Most time, as a fraction of the first candidate's, of one that takes its place."""


class Trial:
    """Computes layers of one kind with all candidates in turn.

    Attributes:
        seconds: The times of each candidate.
    """

    def __init__(
        self,
        candidates: tuple[Kernel, ...],
        on_complete: Callable[[Kernel], None],
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Begin without a time.

        Args:
            candidates: The kernels; ties go to the first.
            on_complete: Called with the winner after the last call that is needed.
            clock: Returns the time in seconds.
        """
        self._on_complete = on_complete
        self.seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in candidates}
        self._clock = clock

    def __call__(
        self, x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute a layer with the candidate that has had the fewest calls, and time it."""
        kernel = min(self._hopeful, key=lambda one: len(self.seconds[one]))
        began = self._clock()
        result = kernel.compute(x, weight, bias)
        self.seconds[kernel].append(self._clock() - began)
        if self._is_complete and self.best is not None:
            self._on_complete(self.best)
        return result

    @property
    def _is_complete(self) -> bool:
        """Whether every candidate has had its calls, or has none to hope for."""
        return all(len(self.seconds[kernel]) >= _CALLS for kernel in self._hopeful)

    @property
    def best(self) -> Kernel | None:
        """The quickest candidate; None before any call."""
        quickest = self._quickest
        if not quickest:
            return None
        first = next(iter(self.seconds))
        best = min(quickest, key=quickest.__getitem__)
        if first in quickest and quickest[best] > _WIN * quickest[first]:
            return first
        return best

    @property
    def _quickest(self) -> dict[Kernel, float]:
        return {kernel: min(times) for kernel, times in self.seconds.items() if times}

    @property
    def _hopeful(self) -> list[Kernel]:
        """The candidates that may still win, the best one among them."""
        best = min(self._quickest.values(), default=0.0)
        return [kernel for kernel, times in self.seconds.items() if not _is_hopeless(times, best)]


def _is_hopeless(times: list[float], best: float) -> bool:
    if not times:
        return False
    factor = _HOPELESS if len(times) > 1 else _ABANDONED
    return min(times) > factor * best
