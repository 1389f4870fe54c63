"""The log line of every minute, and the one about memory after loading."""

from __future__ import annotations

import logging
import mmap
from pathlib import Path

import pytest

from predictor.metrics import EngineMetrics, WeightMetrics
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.pod.memory import read_own_anonymous
from predictor.weights.audit import compare
from tests.placement.small import MIB, footprint, pod

GIB = 1024**3
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Clock:
    """A clock that the tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_once_a_minute_the_log_says_how_fast_it_is_and_what_it_waits_for(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    weights = WeightMetrics("pace")
    engine = EngineMetrics("pace", weights, clock=clock)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            clock.now += 20
            weights.count_read("store", 2 * 2**30, 2.0)
            weights.count_stall(5.0)
            engine.count_step(rows=4, seconds=10.0, tokens=40)
    (line,) = caplog.messages
    assert line == (
        "2.0 tokens/s in the last 60 s, 50 % of them in passes; "
        "50 % of these waiting for blocks, which were read at 1.00 GiB/s"
    )


def test_without_streaming_the_line_ends_with_the_passes(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = EngineMetrics("resident-pace", clock=clock)
    with caplog.at_level(logging.INFO):
        clock.now += 61
        engine.count_step(rows=1, seconds=6.1, tokens=61)
    assert caplog.messages == ["1.0 tokens/s in the last 61 s, 10 % of them in passes"]


def test_what_waits_in_memory_for_a_gpu_alone_makes_the_line_say_how_long_passes_wait(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    weights = WeightMetrics("waiting-pace")
    engine = EngineMetrics("waiting-pace", weights, clock=clock)
    weights.count_copied(GIB)
    weights.count_stall(3.05)
    with caplog.at_level(logging.INFO):
        clock.now += 61
        engine.count_step(rows=1, seconds=6.1, tokens=61)
    assert caplog.messages[0].endswith("10 % of them in passes; 50 % of these waiting for blocks")


@pytest.mark.parametrize(
    ("more", "is_logged"), [(0, False), (60 * MIB, False), (90 * MIB, True), (-90 * MIB, True)]
)
def test_memory_that_contradicts_the_plan_is_logged_with_both_numbers(
    caplog: pytest.LogCaptureFixture, more: int, is_logged: bool
) -> None:
    model = footprint(blocks=30)
    placement = plan(model, pod(memory=1000), PlacementOptions(headroom=0.0))
    planned = placement.tier("cpu").weights
    with caplog.at_level(logging.WARNING):
        compare(placement, held=planned + 7 * MIB + more, buffers=7 * MIB)
    assert bool(caplog.messages) is is_logged
    if is_logged:
        assert "321.00 MiB were planned" in caplog.text


def test_anonymous_memory_is_read_from_the_kernel() -> None:
    before = read_own_anonymous()
    with mmap.mmap(-1, 64 * MIB) as shared, mmap.mmap(-1, 64 * MIB, flags=PRIVATE) as held:
        for memory in (shared, held):
            memory[::4096] = b"x" * len(memory[::4096])
        assert 48 * MIB < read_own_anonymous() - before < 80 * MIB


def test_where_the_kernel_tells_all_resident_memory_alone_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tpython\nVmRSS:\t  300 kB\nThreads:\t1\n")
    assert read_own_anonymous(proc=tmp_path) == 300 * 1024
