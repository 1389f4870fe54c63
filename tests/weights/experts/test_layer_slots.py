"""The books of one layer's slots, with exact values."""

from __future__ import annotations

from collections import deque

from predictor.weights.experts.layer_slots import LayerSlots

EXPERTS = 4


def counts(*touched: int) -> list[int]:
    return [int(expert in touched) for expert in range(EXPERTS)]


def slots_with(*experts: int, quota: int) -> LayerSlots:
    """Slots in which these experts are after one pass, and one more that is free."""
    slots = LayerSlots(EXPERTS, quota, deque(range(quota + 1)))
    step = slots.begin(counts(*experts))
    for expert in step.misses:
        slots.settle(expert, slots.free.popleft())
    slots.end()
    return slots


def test_experts_that_come_keep_their_slots_within_the_quota() -> None:
    slots = slots_with(1, 3, quota=2)
    assert (slots.held, slots.experts, list(slots.free)) == ({1: 0, 3: 1}, (1, 3), [2])


def test_an_expert_that_does_not_stay_frees_its_slot() -> None:
    slots = LayerSlots(EXPERTS, 0, deque([0]))
    step = slots.begin(counts(2))
    slots.settle(2, slots.free.popleft())
    slots.end()
    assert (step.misses, slots.held, list(slots.free)) == ((2,), {}, [0])


def test_an_expert_that_leaves_unused_frees_its_slot_before_the_pass() -> None:
    slots = slots_with(1, quota=1)
    step = slots.begin(counts(2))
    assert (step.evicted, step.admitted) == ((1,), (2,))
    assert (slots.held, list(slots.free)) == ({}, [1, 0])
    assert not slots.leave(1)


def test_what_has_not_come_in_a_pass_that_failed_does_not_stay() -> None:
    slots = slots_with(1, quota=1)
    slots.begin(counts(2))
    slots.end()
    assert (slots.held, set(slots.policy.cached)) == ({}, set())
    assert slots.begin(counts(2)).misses == (2,)


def test_an_expert_that_is_used_and_leaves_frees_its_slot_when_it_has_computed() -> None:
    slots = slots_with(0, 3, quota=2)
    for expert in slots.begin(counts(1, 2)).misses:
        slots.settle(expert, slots.free.popleft())
    slots.end()
    assert slots.held == {1: 2, 2: 0}
    step = slots.begin(counts(0, 1, 3))
    assert (step.hits, step.evicted) == ((1,), (2, 1))
    assert (slots.held, list(slots.free)) == ({1: 2}, [1, 0])
    assert slots.leave(1)
    assert (slots.held, list(slots.free)) == ({}, [1, 0, 2])
    assert not slots.leave(1)
