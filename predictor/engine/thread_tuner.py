"""How many threads compute a forward pass: measured again while serving, and corrected.

A start may measure while neighbours keep the node busy, and neighbours come and go. So other
numbers of threads are tried on real forward passes. A trial has three blocks:

1. The chosen number: the *norm* of each shape of forward pass is learned.
2. The candidate: its forward passes are compared with the norms of their shapes.
3. If the candidate wins, the chosen number again. The candidate has to win against this block too,
   because the node may have become quieter or busier in the meantime.

A candidate that wins twice is chosen. After a change the first forward pass of each shape is not
compared, because kernels are compiled anew. If every candidate loses, the next trials wait twice as
long. They come at once if forward passes leave their norm: then a disturbance has begun or ended.

The module does no I/O and reads no clock. Its time is the time of forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto

NEGLIGIBLE = 1 / 3
"""Most slowdown by one thread less, as a fraction of its cost if every thread counted."""

SERVER_SECONDS = 0.004
"""Most processor time that the server's own work takes beside a forward pass: about what it takes
to tokenise, detokenise and send for 16 users. One thread less need not save more than this."""

_HYSTERESIS = 1.07
"""Least win of a candidate. Less is noise, and every change compiles kernels."""

_WINS = 2
"""Wins in a row after which a candidate is chosen."""

_COMPILATION = 0.2
"""Most seconds by which a forward pass with new kernels exceeds its norm because of them."""

_PASSES, _SECONDS = 5, 0.25
"""Least forward passes in a block, and least seconds that they take at the norm."""

_HOPELESS_PASSES, _HOPELESS = 2, 1.5
"""Forward passes after which a candidate loses if all are so many times too slow."""

_DISTURBED = 1.4
"""Factor, in either direction, by which forward passes leave their norm."""

_PAUSE, _LONGEST_PAUSE = 5.0, 60.0
"""Seconds of forward passes between two rounds of trials: after a change, and at most."""

_FREE, _SHARE = 2.0, 0.02
"""Most seconds lost to trials: so many, and a share of the time of all forward passes."""

_RESERVE = 1.0
"""Seconds of these that are kept for trials after forward passes have left their norm."""

_MOST_COMPILED = 32
"""Pairs of a shape and a number of threads that trials compile kernels for. In bfloat16 a pair
takes 2 MiB and more for good, which no plan counts."""

_MOST_OTHERS = 64
"""Forward passes of a trial with the chosen number after which it ends without a result."""

_MOST_SHAPES = 256
"""Shapes whose norm is learned at one time: a bound of memory that no model reaches."""


def leave_one_factor(limit: int, seconds: float) -> float:
    """Return how much slower a forward pass may be if one processor of `limit` is left free.

    Threads that compute wait for each other. If the server's work takes a processor from one, all
    stand still. So one is left to the server if that slows the model little, and no more than this.

    Args:
        limit: Most threads, at least 2.
        seconds: Seconds that a forward pass takes, more than 0.
    """
    return 1 + min(NEGLIGIBLE / (limit - 1), SERVER_SECONDS / seconds)


@dataclass(slots=True)
class _Block:
    """Forward passes that are measured together."""

    values: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, value: float, seconds: float) -> None:
        self.values.append(value)
        self.seconds += seconds

    @property
    def is_complete(self) -> bool:
        return len(self.values) >= _PASSES and self.seconds >= _SECONDS

    @property
    def typical(self) -> float:
        """The mean without the slowest fifth, as stalls count and single outliers do not."""
        kept = sorted(self.values)[: len(self.values) - len(self.values) // 5]
        return sum(kept) / len(kept)


class _Norms:
    """The typical seconds of forward passes with the chosen number of threads, by shape."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}
        self._learning: dict[Hashable, _Block] = {}

    def get(self, shape: Hashable) -> float | None:
        return self._seconds.get(shape)

    def learn(self, shape: Hashable, seconds: float) -> None:
        """Add a forward pass of a shape whose norm is not known."""
        if len(self._learning) >= _MOST_SHAPES:
            self._learning.clear()
        block = self._learning.setdefault(shape, _Block())
        block.add(seconds, seconds)
        if block.is_complete:
            self._seconds[shape] = block.typical
            del self._learning[shape]


class _Phase(Enum):
    LEARN = auto()
    TRY = auto()
    CONFIRM = auto()
    WATCH = auto()


class ThreadTuner:
    """Chooses the number of threads of the next forward pass from those before.

    Attributes:
        chosen: The best number so far.
    """

    def __init__(self, limit: int, threads: int) -> None:
        """Begin with the number of threads that the start has measured.

        Args:
            limit: Most threads.
            threads: The number to begin with.
        """
        self.chosen = threads
        self._limit = limit
        self._busy = self._lost = 0.0
        self._warm: set[Hashable] = set()
        self._compiled: set[tuple[int, Hashable]] = set()
        self._costs: dict[int, float] = {}
        self._pause, self._next_round = _PAUSE, 0.0
        self._begin_round(reserve=0.0)

    def threads_for(self, shape: Hashable) -> int:
        """Return the number of threads for a forward pass of this shape; it may be on trial."""
        if self._phase is not _Phase.TRY or self._norms.get(shape) is None:
            return self.chosen
        kernels = (self._candidate, shape)
        if kernels not in self._compiled:
            if len(self._compiled) >= _MOST_COMPILED:
                return self.chosen
            self._compiled.add(kernels)
        return self._candidate

    def record(self, shape: Hashable, seconds: float, threads: int) -> None:
        """Note a forward pass.

        Args:
            shape: The kind of forward pass; those of one shape take about equally long.
            seconds: Seconds that it took.
            threads: Its number of threads.
        """
        if self._limit == 1:
            return
        self._busy += seconds
        norm = self._norms.get(shape)
        if threads != self.chosen:
            self._lost += max(0.0, seconds - (norm or 0.0))
        if self._is_cold(shape, seconds - (norm or 0.0)):
            self._warm.add(shape)
        elif norm is None:
            self._norms.learn(shape, seconds)
        elif self._phase is _Phase.LEARN:
            self._norm = norm
            self._next_candidate()
        elif self._phase is _Phase.TRY and threads != self._candidate:
            self._others += 1
        else:
            self._block.add(seconds / norm, norm)
            self._compare()
        if self._phase is _Phase.TRY and (self._left < 0 or self._others >= _MOST_OTHERS):
            self._lose()
        if self._phase is _Phase.WATCH and self._busy >= self._next_round:
            self._begin_round()

    @property
    def _left(self) -> float:
        """Seconds that trials may still lose."""
        return _FREE + _SHARE * self._busy - self._lost

    def _is_cold(self, shape: Hashable, excess: float) -> bool:
        """Whether a forward pass may have taken longer because of new kernels."""
        return shape not in self._warm and (self._phase is _Phase.LEARN or excess < _COMPILATION)

    def _compare(self) -> None:
        if self._phase is _Phase.TRY:
            self._compare_candidate()
        elif not self._block.is_complete:
            return
        elif self._phase is _Phase.CONFIRM:
            self._confirm(self._block.typical)
        else:
            self._watch(self._block.typical)

    def _compare_candidate(self) -> None:
        block = self._block
        hopeless = _HOPELESS * self._weight(self.chosen) / self._weight(self._candidate)
        if len(block.values) >= _HOPELESS_PASSES and min(block.values) > hopeless:
            self._lose()
        elif block.is_complete and self._wins(block.typical, 1.0):
            self._result = block.typical
            self._enter(_Phase.CONFIRM)
        elif block.is_complete:
            self._lose()

    def _confirm(self, chosen: float) -> None:
        if not self._wins(self._result, chosen):
            self._lose()
            return
        self._wins_in_a_row += 1
        if self._wins_in_a_row < _WINS:
            self._enter(_Phase.TRY)
        else:
            self._choose(self._candidate)

    def _watch(self, ratio: float) -> None:
        self._block = _Block()
        if not 1 / _DISTURBED <= ratio <= _DISTURBED:
            self._pause = _PAUSE
            self._begin_round(reserve=0.0)

    def _wins(self, candidate: float, chosen: float) -> bool:
        cost = candidate * self._weight(self._candidate)
        return cost * _HYSTERESIS < chosen * self._weight(self.chosen)

    def _weight(self, threads: int) -> float:
        """The number that leaves no processor to the server has to be that much faster."""
        return leave_one_factor(self._limit, self._norm) if threads == self._limit else 1.0

    def _choose(self, threads: int) -> None:
        before, self.chosen = self.chosen, threads
        self._pause = _PAUSE
        self._begin_round(but=before)

    def _begin_round(self, *, reserve: float = _RESERVE, but: int | None = None) -> None:
        """Learn the norms anew, then try each candidate, but the one that has just lost."""
        n = self.chosen
        around = (self._limit, n // 2, n - 1, n + 1, 2 * n, 1)
        if not reserve:
            self._costs.clear()
        self._reserve, self._is_tried, self._scaling = reserve, False, 1.0
        self._candidates = [c for c in dict.fromkeys(around) if self._may_try(c) and c != but]
        self._norms = _Norms()
        self._enter(_Phase.LEARN)

    def _may_try(self, threads: int) -> bool:
        return 1 <= threads <= self._limit and threads != self.chosen

    def _expected_cost(self, candidate: int) -> float:
        """Seconds that a trial loses: as many as the last one, or as the other trials suggest."""
        slower = max(1.0, math.pow(self.chosen / candidate, self._scaling))
        return self._costs.get(candidate, _HOPELESS_PASSES * slower * self._norm)

    def _lose(self) -> None:
        """Note what the candidate's trial has cost, and go on to the next candidate."""
        self._costs[self._candidate] = self._lost - self._lost_before
        fewer = self.chosen / self._candidate
        if self._phase is _Phase.TRY and self._block.values and fewer > 1:
            self._scaling = max(0.0, math.log(self._block.typical) / math.log(fewer))
        self._next_candidate()

    def _next_candidate(self) -> None:
        while self._candidates:
            self._candidate = self._candidates.pop(0)
            if self._left - self._reserve >= self._expected_cost(self._candidate):
                self._is_tried, self._wins_in_a_row = True, 0
                self._lost_before = self._lost
                self._enter(_Phase.TRY)
                return
        self._next_round = self._busy + self._pause
        if self._is_tried:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._enter(_Phase.WATCH)

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._block, self._others = phase, _Block(), 0
        if phase is not _Phase.WATCH:
            self._warm.clear()
