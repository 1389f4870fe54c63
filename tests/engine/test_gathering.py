"""An idle engine waits a little for requests that come with the first."""

from __future__ import annotations

import pytest

from predictor.engine.generation.gathering import Gathering


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_waited_for_before_passes_are_timed_or_if_they_are_short() -> None:
    gathering = Gathering(Clock())
    gathering.note_arrival(is_first=True)
    assert gathering.seconds_left == 0
    gathering.note_pass(0.04)
    assert gathering.seconds_left == 0


def test_the_wait_is_a_part_of_the_shortest_of_the_last_passes() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    for seconds in (0.1, *[1.0] * 7, 2.0):  # the first is forgotten only with the ninth
        gathering.note_pass(seconds)
    gathering.note_arrival(is_first=True)
    assert gathering.seconds_left == pytest.approx(0.02)
    clock.now += 0.015
    gathering.note_arrival(is_first=False)
    assert gathering.seconds_left == pytest.approx(0.02)
    clock.now += 0.015
    gathering.note_arrival(is_first=False)
    assert gathering.seconds_left == pytest.approx(0.02)
    clock.now += 0.015
    gathering.note_arrival(is_first=False)
    assert gathering.seconds_left == pytest.approx(0.005)  # of the twentieth of a pass in all
    clock.now += 0.01
    assert gathering.seconds_left == 0


def test_the_next_first_one_waits_anew() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    gathering.note_pass(1.0)
    gathering.note_arrival(is_first=True)
    clock.now += 10
    gathering.note_arrival(is_first=False)
    assert gathering.seconds_left == 0
    gathering.note_arrival(is_first=True)
    assert gathering.seconds_left == pytest.approx(0.02)


def test_the_wait_has_a_bound_whatever_the_passes_took() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    gathering.note_pass(60.0)
    gathering.note_arrival(is_first=True)
    assert gathering.seconds_left == pytest.approx(0.2)
