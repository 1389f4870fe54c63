"""The two gates of admission, with a clock of their own."""

from __future__ import annotations

from typing import Any

import pytest

from predictor.admission import AdmissionController, AdmissionLimits, RequestPermit
from predictor.errors import Overloaded

LIMITS = AdmissionLimits(requests=2, body_bytes=100, sequences=10, tokens=1000)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def controller(clock: Clock | None = None, **changes: int) -> AdmissionController:
    limits = AdmissionLimits(
        **{name: changes.get(name, getattr(LIMITS, name)) for name in LIMITS.__slots__}
    )
    return AdmissionController(limits, clock=clock or Clock(), jitter=lambda: 0.0)


def full(clock: Clock, requests: int, **options: Any) -> AdmissionController:
    limits = AdmissionLimits(requests=requests, body_bytes=10_000, sequences=10, tokens=1000)
    admission = AdmissionController(limits, clock=clock, **({"jitter": lambda: 0.0} | options))
    for _ in range(requests):
        admission.admit(1)
    return admission


def answer(admission: AdmissionController) -> None:
    """Answer a request, in whose place another comes."""
    admission.requests += 1
    RequestPermit(admission, 0).release()


def retry_after(admission: AdmissionController) -> int:
    with pytest.raises(Overloaded) as caught:
        admission.admit(1)
    return caught.value.retry_after


def test_as_many_requests_as_allowed_are_admitted():
    admission = controller()
    first, _ = admission.admit(1), admission.admit(1)
    with pytest.raises(Overloaded, match=r"^2 requests are running and waiting; try again later.$"):
        admission.admit(1)
    first.release()
    admission.admit(1)


def test_while_draining_requests_are_not_counted_and_their_bytes_are():
    admission = controller()
    admission.drain()
    for _ in range(5):
        admission.admit(20)
    with pytest.raises(Overloaded):
        admission.admit(1)


def test_bytes_of_bodies_are_bounded_and_corrected_when_they_are_read():
    admission = controller()
    first = admission.admit(60)
    with pytest.raises(Overloaded, match="have 60 bytes, and this one 50 of the 100 that they may"):
        admission.admit(50)
    first.resize(50)
    admission.admit(50)
    first.release()
    assert (admission.requests, admission.body_bytes) == (1, 50)


def test_a_permit_gives_back_its_share_once():
    admission = controller()
    permit, other = admission.admit(10), admission.enter(3, 30)
    for _ in range(2):
        permit.release()
        other.release()
        permit.resize(99)
    assert admission.requests == admission.body_bytes == admission.running == 0
    assert admission.sequences == admission.tokens == 0


def test_sequences_and_tokens_are_bounded_over_all_requests():
    admission = controller()
    admission.enter(8, 600)
    with pytest.raises(Overloaded, match="8 sequences are running and waiting, and this request"):
        admission.enter(3, 1)
    with pytest.raises(Overloaded, match="may have 600 tokens, and those of this request 500;"):
        admission.enter(1, 500)
    admission.enter(2, 400)
    assert (admission.running, admission.sequences, admission.tokens) == (2, 10, 1000)


def test_a_request_that_is_alone_is_admitted_however_large_it_is():
    admission = controller()
    admission.admit(1000).release()
    permit = admission.enter(256, 10**6)
    with pytest.raises(Overloaded):
        admission.enter(1, 1)
    permit.release()
    admission.enter(1, 1)


def test_each_refused_request_has_a_turn_of_its_own():
    clock = Clock()
    admission = controller(clock)
    admission.admit(1), admission.admit(1)
    for _ in range(100):  # one answer in 4 seconds
        clock.now += 4
        answer(admission)
    assert [retry_after(admission) for _ in range(5)] == [4, 8, 12, 16, 16]
    clock.now += 8
    assert 8 <= retry_after(admission) <= 14  # the turns of those before have come nearer


def test_answers_that_come_all_at_once_are_a_rate_too():
    clock = Clock()
    admission = full(clock, 32)
    for _ in range(20):  # batches of 32 in 8 seconds
        clock.now += 8
        for _ in range(32):
            answer(admission)
    turns = [retry_after(admission) for _ in range(64)]
    assert turns[0] == 1
    assert 12 <= turns[-1] <= 18


def test_nobody_is_sent_away_for_long_unless_a_single_answer_takes_longer():
    clock = Clock()
    admission = full(clock, 100)
    clock.now += 10
    answer(admission)
    assert max(retry_after(admission) for _ in range(1000)) == 60
    for _ in range(10):
        clock.now += 300
        answer(admission)
    assert retry_after(admission) > 120


def test_time_in_which_nothing_runs_is_not_counted():
    clock = Clock()
    admission = controller(clock, requests=1)
    for _ in range(50):
        permit = admission.admit(1)
        clock.now += 1
        permit.release()
        clock.now += 1000
    admission.admit(1)
    assert retry_after(admission) == 1
    assert retry_after(admission) == 2


def test_nobody_is_sent_away_for_longer_than_all_in_flight_take_twice():
    clock = Clock()
    admission = full(clock, 10)
    for _ in range(200):
        clock.now += 0.5
        answer(admission)
    assert 9 <= max(retry_after(admission) for _ in range(1000)) <= 11


def test_turns_are_spread_by_chance():
    admission = full(Clock(), 100, jitter=iter([0.0, 1.0]).__next__)
    for _ in range(2):
        admission._turns._promised = 19.5
        retries = retry_after(admission)
    assert retries < 18


def test_turns_that_are_the_longest_are_spread_too():
    jitter = iter([0.0] * 1000 + [0.0, 0.5, 1.0]).__next__
    admission = full(Clock(), 100, jitter=jitter)
    for _ in range(1000):
        retry_after(admission)
    assert [retry_after(admission) for _ in range(3)] == [60, 54, 48]


def test_when_all_have_gone_no_turn_is_promised_any_more():
    admission = controller()
    permits = [admission.admit(1), admission.admit(1)]
    for _ in range(100):
        late = retry_after(admission)
    assert late == 4
    for permit in permits:
        permit.release()
    admission.admit(1), admission.admit(1)
    assert retry_after(admission) == 1


def test_a_body_claims_more_as_it_arrives():
    admission = controller()
    growing, _ = admission.admit(40), admission.admit(20)
    growing.claim(80)
    growing.claim(10)  # it has them
    assert admission.body_bytes == 100
    with pytest.raises(Overloaded, match="have 20 bytes, and this one 81 of the 100 that they may"):
        growing.claim(81)
    growing.release()
    growing.claim(1000)
    assert admission.body_bytes == 20
