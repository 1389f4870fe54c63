"""Whether drafts pay where each may need other experts, which are read: measured in place.

A forward pass with drafts reads the experts of more tokens. How many these are depends on the text,
on the router and on the experts that are in memory, so no cost that was measured once holds. Passes
with drafts and without are compared as they go: tokens per second, for each number of sequences by
itself. The better way goes on. The other one is tried again from time to time, and the more rarely
the more often it has lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_PASSES = 4
"""Forward passes of a trial: the first one reads experts that others no longer need."""

_FIRST_REST, _LONGEST_REST = 32, 1024
"""Forward passes between two trials, at first and at last. A trial of drafts that halve the speed
then takes 10 % of the time at first, and 0.4 % at last."""

_LEAST_GAIN = 1.05
"""Tokens per second with drafts, as a multiple of those without, above which they pay."""

_WEIGHT = 0.25
"""The weight of a forward pass in the rate."""


@dataclass(slots=True)
class _Way:
    """Forward passes with drafts, or without: how many, and their tokens per second."""

    passes: int = 0
    rate: float = 0.0

    def note(self, rate: float) -> None:
        self.rate = rate if not self.passes else self.rate + _WEIGHT * (rate - self.rate)
        self.passes += 1


@dataclass(slots=True)
class _Trials:
    """The trials of one number of sequences."""

    plain: _Way = field(default_factory=_Way)
    drafted: _Way = field(default_factory=_Way)
    rest: int = _FIRST_REST
    rested: int = 0
    left: int = 0  # passes of the trial that goes on
    pays: bool = False

    def allows(self) -> bool:
        """Return whether the next forward pass may have drafts."""
        if self.plain.passes < _PASSES:
            return False
        if self.drafted.passes < _PASSES:
            return True
        return self.pays if not self.left else not self.pays

    def note(self, rate: float, *, has_drafts: bool) -> None:
        (self.drafted if has_drafts else self.plain).note(rate)
        if min(self.plain.passes, self.drafted.passes) < _PASSES:
            return
        if not self.left:
            self.rested += 1
            self._decide()
            if self.rested >= self.rest:
                self.rested, self.left = 0, _PASSES
        elif has_drafts != self.pays:
            self.left -= 1
            if not self.left:
                before = self.pays
                self._decide()
                lost = before == self.pays
                self.rest = min(2 * self.rest, _LONGEST_REST) if lost else _FIRST_REST

    def _decide(self) -> None:
        self.pays = self.drafted.rate >= _LEAST_GAIN * self.plain.rate


class DraftTrials:
    """Compares forward passes with drafts to those without."""

    def __init__(self) -> None:
        """Begin with nothing measured."""
        self._trials: dict[int, _Trials] = {}

    def allows(self, rows: int) -> bool:
        """Return whether the next forward pass of so many sequences may have drafts."""
        return self._of(rows).allows()

    def note(self, rows: int, *, tokens: int, seconds: float, has_drafts: bool) -> None:
        """Note a forward pass of single tokens and their drafts.

        Args:
            rows: How many sequences it had.
            tokens: Tokens that it gave, accepted drafts among them.
            seconds: Its duration.
            has_drafts: Whether it had drafts.
        """
        self._of(rows).note(tokens / max(seconds, 1e-9), has_drafts=has_drafts)

    def _of(self, rows: int) -> _Trials:
        return self._trials.setdefault(rows.bit_length(), _Trials())
