"""Which experts keep their slots: exact small steps, and simulations over synthetic routings."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.weights.experts.slot_policy import SlotPolicy, Step
from tests.weights.experts.routings import (
    RECORDED,
    Routing,
    best_static_hits,
    correlated,
    cyclic,
    lru_hits,
    read_routing,
    union,
    with_prefills,
    zipf,
)

EXPERTS, ROUTED, PASSES = 64, 4, 600


def policy_hits(routing: Routing, quota: int, experts: int = EXPERTS) -> int:
    policy = SlotPolicy(experts, quota)
    return sum(len(policy.step(touched).hits) for touched in routing)


# Single steps


def test_misses_stay_while_there_is_room() -> None:
    policy = SlotPolicy(8, 3)
    assert policy.step([5, 2]) == Step(hits=(), misses=(5, 2), admitted=(5, 2), evicted=())
    assert policy.step([2, 7]) == Step(hits=(2,), misses=(7,), admitted=(7,), evicted=())
    assert set(policy.cached) == {2, 5, 7}


def test_the_expert_that_was_used_least_recently_leaves() -> None:
    policy = SlotPolicy(8, 3)
    for touched in ([5, 2], [2, 7]):
        policy.step(touched)
    assert policy.step([2, 1]) == Step(hits=(2,), misses=(1,), admitted=(1,), evicted=(5,))


def test_a_pass_over_more_experts_than_the_quota_keeps_as_many_as_there_are_slots() -> None:
    policy = SlotPolicy(8, 3)
    step = policy.step([7, 6, 5, 4])
    assert (step.misses, step.admitted, step.evicted) == ((7, 6, 5, 4), (7, 6, 5), ())
    assert set(policy.cached) == {5, 6, 7}


def test_without_slots_everything_is_read_and_nothing_stays() -> None:
    policy = SlotPolicy(8, 0)
    for _ in range(3):
        assert policy.step([1, 2]) == Step(hits=(), misses=(1, 2), admitted=(), evicted=())
    assert set(policy.cached) == set()


def test_with_a_slot_for_each_expert_each_is_read_once() -> None:
    policy = SlotPolicy(8, 100)
    steps = [policy.step([one, (one + 1) % 8]) for one in range(8)] + [policy.step(range(8))]
    assert sorted(itertools.chain(*(step.misses for step in steps))) == list(range(8))
    assert not any(step.evicted for step in steps)


def test_an_expert_that_could_not_be_read_is_a_miss_again_and_its_slot_is_used() -> None:
    policy = SlotPolicy(8, 2)
    policy.step([1, 2])
    policy.forget(2)
    assert set(policy.cached) == {1}
    assert policy.step([2]) == Step(hits=(), misses=(2,), admitted=(2,), evicted=())


def test_the_slot_of_an_expert_that_could_not_be_read_goes_to_any_miss() -> None:
    policy = SlotPolicy(64, 2)
    for touched in cyclic(64, 2, 40):  # frequency leads: what is cached stays
        policy.step(touched)
    kept, lost = policy.cached
    policy.forget(lost)
    other = next(one for one in range(64) if one not in (kept, lost))
    assert policy.step([other]).admitted == (other,)
    assert set(policy.cached) == {kept, other}


def test_forgetting_an_expert_that_is_not_cached_does_nothing() -> None:
    policy = SlotPolicy(8, 2)
    policy.step([1])
    policy.forget(3)
    assert set(policy.cached) == {1}


@given(
    quota=st.integers(0, 9),
    routing=st.lists(st.lists(st.integers(0, 7), min_size=1, unique=True), max_size=60),
    failing=st.sets(st.integers(0, 7)),
)
def test_the_steps_account_for_what_is_cached(
    quota: int, routing: Routing, failing: set[int]
) -> None:
    policy, cached = SlotPolicy(8, quota), set()
    for touched in routing:
        step = policy.step(touched)
        assert set(step.hits) == cached & set(touched)
        assert set(step.hits) | set(step.misses) == set(touched)
        assert set(step.admitted) <= set(step.misses)
        assert set(step.evicted) <= cached
        cached = (cached - set(step.evicted)) | set(step.admitted)
        assert set(policy.cached) == cached
        assert len(cached) <= quota
        for expert in failing & set(step.admitted):
            policy.forget(expert)
            cached.remove(expert)


def test_weights_that_outgrow_their_bits_are_scaled_down() -> None:
    policy = SlotPolicy(EXPERTS, 8)
    for touched in cyclic(EXPERTS, ROUTED, 3 * 1450):  # 32 bits of growth take 1,420 passes
        policy.step(touched)
    hits = [len(policy.step(touched).hits) for touched in cyclic(EXPERTS, ROUTED, 16)]
    assert sum(hits) == 8


# Simulations

talk = functools.partial(correlated, EXPERTS, ROUTED, PASSES, keep=0.9, bias=0.5)

ROUTINGS: dict[str, Callable[[], Routing]] = {
    "Zipf": lambda: zipf(EXPERTS, ROUTED, PASSES, skew=1.0),
    "flat Zipf": lambda: zipf(EXPERTS, ROUTED, PASSES, skew=0.6),
    "drifting Zipf": lambda: zipf(EXPERTS, ROUTED, PASSES, skew=1.2, drift=100),
    "correlated": talk,
    "correlated and drifting": lambda: talk(drift=150),
    "correlated and skewed": lambda: talk(bias=1.5),
    "hardly correlated": lambda: talk(keep=0.6, bias=0.0),
    "cycle of all": lambda: cyclic(EXPERTS, ROUTED, PASSES),
    "cycle of a third": lambda: cyclic(20, ROUTED, PASSES),
    "four users": lambda: union(*(talk(seed=seed) for seed in range(4))),
    "many users": lambda: union(*(talk(seed=seed, bias=1.0) for seed in range(32))),
    "prefills": lambda: with_prefills(talk(), EXPERTS, every=40, share=1.0),
    "prefills of nine tenths": lambda: with_prefills(talk(), EXPERTS, every=40, share=0.9),
    "recorded": lambda: read_routing(RECORDED),
}


@functools.cache
def routing_of(name: str) -> Routing:
    return ROUTINGS[name]()


@pytest.mark.parametrize("quota", [2, 4, 6, 7], ids="{} slots".format)
@pytest.mark.parametrize("name", ROUTINGS)
def test_a_cache_below_twice_the_routed_experts_is_nearly_as_good_as_the_best_static_set(
    name: str, quota: int
) -> None:
    routing = routing_of(name)
    assert policy_hits(routing, quota) >= 0.8 * best_static_hits(routing, quota)


@pytest.mark.parametrize("quota", [8, 16, 32], ids="{} slots".format)
@pytest.mark.parametrize("name", ROUTINGS)
def test_a_large_cache_is_as_good_as_the_better_of_lru_and_the_best_static_set(
    name: str, quota: int
) -> None:
    routing = routing_of(name)
    classic = max(lru_hits(routing, quota), best_static_hits(routing, quota))
    assert policy_hits(routing, quota) >= 0.9 * classic


@pytest.mark.parametrize("quota", [8, 16, 32], ids="{} slots".format)
@pytest.mark.parametrize("name", [name for name in ROUTINGS if "drifting" in name])
def test_a_large_cache_follows_a_drift_as_lru_does(name: str, quota: int) -> None:
    routing = routing_of(name)
    assert policy_hits(routing, quota) >= 0.98 * lru_hits(routing, quota)


@pytest.mark.parametrize("cycle", [12, 20, 64], ids="cycle of {}".format)
def test_a_cycle_does_not_evict_each_expert_before_its_use(cycle: int) -> None:
    routing = cyclic(cycle, ROUTED, PASSES)
    assert lru_hits(routing, 8) == 0
    assert policy_hits(routing, 8) >= 0.9 * best_static_hits(routing, 8)


@pytest.mark.parametrize("name", ["Zipf", "correlated", "correlated and skewed", "recorded"])
def test_a_prefill_of_all_experts_keeps_what_decode_uses(name: str) -> None:
    policy = SlotPolicy(EXPERTS, 12)
    for touched in routing_of(name)[:300]:
        policy.step(touched)
    before = set(policy.cached)
    for _ in range(16):
        policy.step(range(EXPERTS))
    assert len(before & set(policy.cached)) >= 11


@pytest.mark.parametrize("quota", [2, 7, 16, 32], ids="{} slots".format)
def test_of_uniform_uses_the_share_is_hit_that_is_cached(quota: int) -> None:
    # The best static set is no measure here: it has more hits by chance, known only afterwards.
    routing = zipf(EXPERTS, ROUTED, PASSES, skew=0.0)
    assert policy_hits(routing, quota) >= 0.9 * ROUTED * PASSES * quota / EXPERTS


def test_one_routing_gives_the_same_steps_every_time() -> None:
    runs = [SlotPolicy(EXPERTS, 12) for _ in range(2)]
    for touched in routing_of("correlated"):
        first, second = (policy.step(touched) for policy in runs)
        assert first == second


def test_the_recorded_routing_is_of_all_tokens() -> None:
    routing = routing_of("recorded")
    assert len(routing) == 1024
    assert all(len(set(touched)) == ROUTED for touched in routing)
