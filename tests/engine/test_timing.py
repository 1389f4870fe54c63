"""Timing forward passes of runners of known speed, and the number of threads that is then used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from predictor.engine import timing
from predictor.engine.timing import Times, time_forward_passes

MOST = 100


class Runner:
    """Takes a given time."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        self.seconds = seconds  # by tokens and threads
        self.passes = 0

    def run(self, tokens: int) -> None:
        self.passes += 1
        time.sleep(self.seconds(tokens, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def timed(seconds: Callable[[int, int], float]) -> Times:
    return time_forward_passes(Runner(seconds).run, 32)


def test_a_model_that_is_as_fast_with_a_thread_fewer_leaves_the_processor() -> None:
    times = timed(lambda tokens, _: 0.02)
    assert torch.get_num_threads() == 3
    assert times.one == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("slower", [1, 32], ids=["one token", "many tokens"])
def test_a_model_that_needs_every_thread_keeps_it(slower: int) -> None:
    timed(lambda tokens, threads: 0.04 if (tokens, threads) == (slower, 3) else 0.02)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("seconds", "threads"), [(0.004, 1), (0.05, 2)])
def test_a_long_pass_needs_the_last_thread_more_than_the_server(
    seconds: float, threads: int
) -> None:
    torch.set_num_threads(2)
    timed(lambda _, number: seconds if number == 2 else 1.2 * seconds)
    assert torch.get_num_threads() == threads


def test_one_thread_is_never_taken() -> None:
    torch.set_num_threads(1)
    timed(lambda tokens, _: 0.001)
    assert torch.get_num_threads() == 1


def test_a_slow_pass_of_a_large_model_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SLOW", 0.01)
    runner = Runner(lambda tokens, _: 0.02)
    time_forward_passes(runner.run, 32, weights=2 * 2**30)
    assert runner.passes == 2
    assert torch.get_num_threads() == 4


def test_a_slow_pass_of_a_small_model_is_tried_with_a_thread_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "_SLOW", 0.01)
    runner = Runner(lambda tokens, threads: 0.1 if threads == 4 else 0.02)
    time_forward_passes(runner.run, 32, weights=6 * 2**20)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("one", "many", "tokens", "expected"),
    [
        (1.0, 2.0, 11, 10),  # ten tokens more take as long again
        (1.0, 1.0, 11, MOST),  # more tokens are for nothing
        (1.0, 0.5, 11, MOST),
        (1.0, 11.0, 11, 1),
        (1.0, 1.0, 1, 0),  # nothing is known
    ],
)
def test_the_tokens_of_a_pass(one: float, many: float, tokens: int, expected: int) -> None:
    assert Times(one, many, tokens).breakeven_tokens(MOST) == expected
