"""Whether drafts pay where each may need other experts, which are read: measured in place.

A forward pass with drafts reads the experts of more tokens. How many these are depends on the text,
on the router and on the experts that are in memory, so no cost that was measured once holds. Steps
with drafts and without are compared as they go: tokens per second, for each number of sequences by
itself. A step may have several forward passes, of unequally many sequences, and counts as a whole.
The better way goes on. The other one is tried again from time to time, and the more rarely the more
often it has lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_STEPS = 4
"""Steps of a trial: the first one reads experts that others no longer need."""

_FIRST_REST, _LONGEST_REST = 32, 1024
"""Steps between two trials, at first and at last. A trial of drafts that halve the speed
then takes 10 % of the time at first, and 0.4 % at last."""

_LEAST_GAIN = 1.05
"""Tokens per second with drafts, as a multiple of those without, above which they pay."""

_WEIGHT = 0.25
"""The weight of a step in the rate."""


@dataclass(slots=True)
class _Way:
    """Steps with drafts, or without: how many, and their tokens per second."""

    steps: int = 0
    rate: float = 0.0

    def note(self, rate: float) -> None:
        self.rate = rate if not self.steps else self.rate + _WEIGHT * (rate - self.rate)
        self.steps += 1


@dataclass(slots=True)
class _Trials:
    """The trials of one number of sequences."""

    plain: _Way = field(default_factory=_Way)
    drafted: _Way = field(default_factory=_Way)
    rest: int = _FIRST_REST
    rested: int = 0
    left: int = 0  # steps of the trial that goes on
    pays: bool = False

    def allows(self) -> bool:
        """Return whether the next step may have drafts."""
        if self.plain.steps < _STEPS:
            return False
        if self.drafted.steps < _STEPS:
            return True
        return self.pays if not self.left else not self.pays

    def note(self, rate: float, *, has_drafts: bool) -> None:
        (self.drafted if has_drafts else self.plain).note(rate)
        if min(self.plain.steps, self.drafted.steps) < _STEPS:
            return
        if not self.left:
            self.rested += 1
            self._decide()
            if self.rested >= self.rest:
                self.rested, self.left = 0, _STEPS
        elif has_drafts != self.pays:
            self.left -= 1
            if not self.left:
                before = self.pays
                self._decide()
                lost = before == self.pays
                self.rest = min(2 * self.rest, _LONGEST_REST) if lost else _FIRST_REST

    def _decide(self) -> None:
        self.pays = self.drafted.rate >= _LEAST_GAIN * self.plain.rate


@dataclass(slots=True)
class _Step:
    """The forward passes of a step, as one: how many sequences it has, and what it gave so far."""

    rows: int = 0
    computed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    has_drafts: bool = False


class DraftTrials:
    """Compares steps with drafts to those without."""

    def __init__(self) -> None:
        """Begin with nothing measured."""
        self._trials: dict[int, _Trials] = {}
        self._step = _Step()

    def allows(self, rows: int) -> bool:
        """Begin a step of so many sequences, and return whether it may have drafts."""
        step, self._step = self._step, _Step(rows)
        if step.rows and step.computed == step.rows:
            rate = step.tokens / max(step.seconds, 1e-9)
            self._of(step.rows).note(rate, has_drafts=step.has_drafts)
        return self._of(rows).allows()

    def note(self, rows: int, *, tokens: int, seconds: float, has_drafts: bool) -> None:
        """Note a forward pass of the step, of single tokens and their drafts.

        Args:
            rows: How many sequences it had.
            tokens: Tokens that it gave, accepted drafts among them.
            seconds: Its duration.
            has_drafts: Whether it had drafts.
        """
        step = self._step
        step.computed += rows
        step.tokens += tokens
        step.seconds += seconds
        step.has_drafts |= has_drafts

    def _of(self, rows: int) -> _Trials:
        return self._trials.setdefault(rows.bit_length(), _Trials())
