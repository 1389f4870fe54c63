"""Bounds of a heartbeat, worked out by hand with a clock that the test sets."""

from __future__ import annotations

import pytest

from predictor.heartbeat import Activity, Health, Heartbeat, ReportedHealth, State, Timeouts

TIMEOUTS = Timeouts(stall=20, hang=300)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heartbeat(clock: Clock) -> Heartbeat:
    return Heartbeat(TIMEOUTS, clock=clock)


def run_pass(heartbeat: Heartbeat, clock: Clock, seconds: float, tokens: int = 1) -> None:
    heartbeat.begin_pass(tokens)
    clock.now += seconds
    heartbeat.passes.end()


def state_after(heartbeat: Heartbeat, clock: Clock, seconds: float) -> str:
    clock.now += seconds
    state = heartbeat.health().state
    clock.now -= seconds
    return state


def test_an_idle_engine_is_never_stalled(heartbeat: Heartbeat, clock: Clock) -> None:
    assert state_after(heartbeat, clock, 1e9) == "ok"
    run_pass(heartbeat, clock, 1.0)
    assert state_after(heartbeat, clock, 1e9) == "ok"
    heartbeat.begin_pass(1)
    heartbeat.passes.rest()
    assert state_after(heartbeat, clock, 1e9) == "ok"


def test_a_fast_pass_has_the_floors(heartbeat: Heartbeat, clock: Clock) -> None:
    run_pass(heartbeat, clock, 0.01)
    heartbeat.begin_pass(1)
    for seconds, state in ((20, "ok"), (20.5, "stalled"), (300, "stalled"), (300.5, "dead")):
        assert state_after(heartbeat, clock, seconds) == state
    clock.now += 1000
    heartbeat.passes.end()
    assert heartbeat.health().state == "ok"


def test_a_slow_pass_may_take_ten_times_as_long_and_is_dead_after_thirty(
    heartbeat: Heartbeat, clock: Clock
) -> None:
    run_pass(heartbeat, clock, 60.0)
    heartbeat.begin_pass(1)
    for seconds, state in ((600, "ok"), (601, "stalled"), (1800, "stalled"), (1801, "dead")):
        assert state_after(heartbeat, clock, seconds) == state


def test_a_bound_grows_with_the_tokens_of_the_running_pass(
    heartbeat: Heartbeat, clock: Clock
) -> None:
    heartbeat.breakeven_tokens = 100
    run_pass(heartbeat, clock, 5.05)  # 1.01 units: 5 s each
    heartbeat.begin_pass(300)  # 4 units: 20 s
    assert state_after(heartbeat, clock, 199) == "ok"
    assert state_after(heartbeat, clock, 201) == "stalled"


def test_the_slowest_recent_pass_counts_and_is_forgotten_slowly(
    heartbeat: Heartbeat, clock: Clock
) -> None:
    heartbeat.breakeven_tokens = 10**9
    run_pass(heartbeat, clock, 10.0)
    run_pass(heartbeat, clock, 1.0)
    heartbeat.begin_pass(1)
    assert state_after(heartbeat, clock, 97) == "ok"  # 0.98 of 10 s, ten times
    assert state_after(heartbeat, clock, 99) == "stalled"
    for _ in range(200):
        run_pass(heartbeat, clock, 1.0)
    heartbeat.begin_pass(1)
    assert state_after(heartbeat, clock, 21) == "stalled"


def test_before_the_first_pass_the_measurement_of_the_start_counts(
    heartbeat: Heartbeat, clock: Clock
) -> None:
    heartbeat.passes.expect(30.0)
    heartbeat.breakeven_tokens = 10**9
    heartbeat.begin_pass(1)
    assert state_after(heartbeat, clock, 299) == "ok"
    assert state_after(heartbeat, clock, 301) == "stalled"


def test_work_between_passes_has_the_floors(heartbeat: Heartbeat, clock: Clock) -> None:
    run_pass(heartbeat, clock, 60.0)
    heartbeat.passes.begin(0)
    assert state_after(heartbeat, clock, 21) == "stalled"
    heartbeat.passes.end()
    heartbeat.begin_pass(1)
    assert state_after(heartbeat, clock, 21) == "ok"  # the pace is that of passes


def test_a_read_that_hangs_is_named_while_a_pass_waits_for_it(clock: Clock) -> None:
    read_activity = Activity("Reading ", pace=1e-7, clock=clock)
    heartbeat = Heartbeat(TIMEOUTS, read_activity, clock=clock)
    run_pass(heartbeat, clock, 0.5)
    read_activity.begin(1_000_000, "h.0 from /mnt/a")
    clock.now += 1
    heartbeat.begin_pass(1)
    clock.now += 25
    health = heartbeat.health()
    assert health.state == "stalled"
    assert health.sentence == (
        "A forward pass has taken 25 s, where 0.5 s are usual. "
        "Reading h.0 from /mnt/a has taken 26 s, where 0.1 s are usual"
    )


def test_a_large_first_read_has_the_time_of_a_slow_volume(clock: Clock) -> None:
    read_activity = Activity("Reading ", pace=1e-7, clock=clock)  # 10 MB/s
    read_activity.begin(1e9)  # 100 s
    clock.now += 999
    assert read_activity.health(TIMEOUTS).state == "ok"
    read_activity.end()
    assert read_activity.progress == ""
    read_activity.begin(1e9)
    clock.now += 10000
    assert (
        read_activity.health(TIMEOUTS).state == "stalled"
    )  # ten times the 999 s that were measured
    read_activity.rest()


def test_a_measured_pace_replaces_the_assumed_one(clock: Clock) -> None:
    read_activity = Activity("Reading ", pace=1e-7, clock=clock)
    read_activity.begin(1e9)
    clock.now += 1.0  # 1 GB/s
    read_activity.end()
    read_activity.begin(1e9)
    clock.now += 21
    assert read_activity.health(TIMEOUTS).state == "stalled"


def test_reads_count_while_the_engine_is_idle(clock: Clock) -> None:
    """The next request would wait for them."""
    read_activity = Activity("Reading ", clock=clock)
    heartbeat = Heartbeat(TIMEOUTS, read_activity, clock=clock)
    read_activity.begin(1, "h.0")
    clock.now += 301
    assert heartbeat.health().state == "dead"
    assert heartbeat.health().sentence == "Reading h.0 has taken 301 s"


@pytest.mark.parametrize("state", ["ok", "stalled", "dead"])
def test_the_health_of_a_process_is_the_worst_of_its_report_and_its_silence(
    clock: Clock, state: State
) -> None:
    reported = ReportedHealth(clock=clock)
    reported.last, short = Health(state, "A pass takes long"), Timeouts(stall=0.5, hang=1)
    clock.now += 5  # some reports are late
    assert reported.health(short) == reported.last
    clock.now += 6
    assert reported.health(short).state == ("dead" if state == "dead" else "stalled")
    clock.now += 20
    assert reported.health(short).state == "dead"
    reported.hear()
    assert reported.health(short) == reported.last
