"""The number of threads under forward passes of known times, most of them without any noise."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from predictor.engine.thread_tuner import ThreadTuner, leave_one_factor

PassSeconds = Callable[[int], float]
"""The seconds of a forward pass with so many threads."""


class Load:
    """Forward passes one after another, each as long as its number of threads says."""

    def __init__(self, limit: int, threads: int, *, noise: float = 0.0) -> None:
        self.tuner = ThreadTuner(limit, threads)
        self.chance = random.Random(limit)
        self.noise = noise
        self.changes: list[int] = []
        self.seconds = 0.0
        self.lost = 0.0
        self.passes = 0

    def run(self, seconds_of: PassSeconds, seconds: float, shapes: int = 1) -> None:
        """Run for so many seconds, with shapes of which each takes half as long again."""
        end = self.seconds + seconds
        while self.seconds < end:
            shape = self.passes % shapes
            before, chosen = self.tuner.threads_for(shape), self.tuner.chosen
            factor = 1.5**shape * self.chance.lognormvariate(0, self.noise)
            taken = seconds_of(before) * factor
            self.lost += max(0.0, taken - seconds_of(chosen) * factor)
            self.tuner.record(shape, taken, before)
            self.seconds += taken
            self.passes += 1
            if self.tuner.chosen != chosen:
                self.changes.append(self.tuner.chosen)


def scales(threads: int) -> float:
    """A large model: all threads help."""
    return 0.1 / threads


def waits(threads: int) -> float:
    """A small model: its threads wait for each other."""
    return 0.01 * threads


def busy_node(threads: int) -> float:
    """Neighbours take all processors but one."""
    return 0.02 if threads == 1 else 0.4


@pytest.mark.parametrize("limit", [2, 3, 4, 8, 16])
def test_a_model_for_which_threads_help_keeps_all(limit: int) -> None:
    load = Load(limit, limit)
    load.run(scales, 300)
    assert load.changes == []
    assert load.tuner.chosen == limit


@pytest.mark.parametrize("limit", [2, 4, 8])
def test_a_start_with_too_many_threads_is_corrected_in_seconds(limit: int) -> None:
    load = Load(limit, limit)
    load.run(waits, 10)
    assert load.tuner.chosen == 1


@pytest.mark.parametrize("limit", [2, 4, 8, 32])
def test_a_start_with_too_few_threads_is_corrected_in_a_minute(limit: int) -> None:
    load = Load(limit, 1)
    load.run(scales, 60)
    assert load.tuner.chosen == limit


def test_slow_passes_of_a_small_model_on_a_busy_node_are_corrected() -> None:
    load = Load(2, 2)
    load.run(busy_node, 30)
    assert load.tuner.chosen == 1


@pytest.mark.parametrize("disturbed", [3, 30, 300, 3000])
@pytest.mark.parametrize("limit", [2, 4, 8])
@pytest.mark.parametrize("shapes", [1, 3])
def test_a_minute_after_a_disturbance_the_number_is_right(
    disturbed: int, limit: int, shapes: int
) -> None:
    load = Load(limit, limit)
    load.run(busy_node, disturbed, shapes)
    assert load.tuner.chosen == 1 or disturbed < 300
    load.run(lambda threads: 0.06 / threads, 60, shapes)
    assert load.tuner.chosen == limit


def test_a_disturbance_that_begins_late_is_noticed_in_a_minute() -> None:
    load = Load(4, 4)
    load.run(scales, 3000)
    assert load.changes == []
    load.run(busy_node, 60)
    assert load.tuner.chosen == 1


def test_a_processor_is_left_to_the_server_if_that_costs_little() -> None:
    load = Load(4, 4)
    little = leave_one_factor(4, 0.02) / 1.08
    load.run(lambda threads: 0.02 * (1.0, little, 3.0)[4 - max(2, threads)], 30)
    assert load.tuner.chosen == 3


@pytest.mark.parametrize(("seconds", "chosen"), [(0.002, 1), (0.15, 2)])
def test_no_processor_is_left_that_saves_more_than_the_server_takes(
    seconds: float, chosen: int
) -> None:
    load = Load(2, 1)
    load.run(lambda threads: seconds if threads == 2 else 1.25 * seconds, 60)
    assert load.tuner.chosen == chosen


@pytest.mark.parametrize("seconds", [0.006, 0.012, 0.02, 0.05])
@pytest.mark.parametrize("gain", [1.05, 1.15, 1.25, 1.35, 1.45])
def test_no_number_of_two_alternates(seconds: float, gain: float) -> None:
    load = Load(2, 2)
    load.run(lambda threads: seconds if threads == 2 else gain * seconds, 300)
    assert len(load.changes) <= 1


@pytest.mark.parametrize("start", [3, 4])
def test_numbers_that_are_equally_good_do_not_alternate(start: int) -> None:
    load = Load(4, start)
    load.run(lambda threads: 0.02 if threads == 4 else 0.02 * leave_one_factor(4, 0.02), 300)
    assert load.changes == []


@pytest.mark.parametrize("seconds", [0.002, 0.02, 0.3])
@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_noise_does_not_make_the_number_flap(seconds: float, noise: float) -> None:
    load = Load(4, 4, noise=noise)
    load.run(lambda n: seconds * {4: 1.0, 3: 1.2, 2: 1.6, 1: 3.0}[n], 400)
    assert len(load.changes) <= 2
    assert load.tuner.chosen == 4


@pytest.mark.parametrize("seconds_of", [scales, waits, busy_node])
@pytest.mark.parametrize("limit", [2, 4, 16])
def test_the_time_that_trials_lose_is_bounded(seconds_of: PassSeconds, limit: int) -> None:
    load = Load(limit, limit)
    for _ in range(20):
        load.run(seconds_of, 20)
        slowest = max(seconds_of(threads) for threads in range(1, limit + 1))
        assert load.lost <= 2 + 0.02 * load.seconds + slowest


def test_trials_become_rare_while_nothing_changes() -> None:
    load = Load(4, 4)
    load.run(scales, 600)
    early, passes = load.lost, load.seconds
    load.run(scales, 600)
    assert load.lost - early < 0.01 * (load.seconds - passes)


def test_passes_that_take_minutes_are_not_tried_at_once() -> None:
    load = Load(4, 4)
    load.run(lambda threads: 60.0, 600)
    assert load.lost == 0
    assert load.tuner.threads_for(0) == 4


def test_one_processor_has_nothing_to_choose() -> None:
    load = Load(1, 1)
    load.run(lambda threads: 0.01, 100)
    assert load.changes == []
    assert load.tuner.threads_for(0) == 1


def test_the_first_pass_with_another_number_is_not_compared() -> None:
    tuner, trials = ThreadTuner(2, 2), 0
    while tuner.chosen == 2 and trials < 1000:
        before = tuner.threads_for("decode")
        compiles = before == 1 and trials == 0
        trials += before == 1
        tuner.record("decode", 1.0 if compiles else 0.02 * before, before)
    assert tuner.chosen == 1


def test_ever_new_shapes_are_not_kept() -> None:
    tuner = ThreadTuner(2, 2)
    for shape in range(2000):
        tuner.record(shape, 0.02, 2)
        tuner.record(shape, 0.02, 2)
    assert len(tuner._norms._learning) <= 256


def test_trials_compile_kernels_for_few_shapes_only() -> None:
    tuner, tried = ThreadTuner(4, 4), set()
    for index in range(200_000):
        shape = index // 100 % 50
        threads = tuner.threads_for(shape)
        if threads != 4:
            tried.add((threads, shape))
        tuner.record(shape, 0.08 / threads, threads)
    assert tuner.chosen == 4
    assert len(tried) <= 32


def test_shapes_without_a_norm_are_not_tried() -> None:
    tuner = ThreadTuner(2, 2)
    while tuner.threads_for("decode") == 2:
        tuner.record("decode", 0.02, 2)
    assert tuner.threads_for("decode") == 1
    assert tuner.threads_for("prefill") == 2
