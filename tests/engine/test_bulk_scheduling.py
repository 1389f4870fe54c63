"""Bulk work yields to other requests: exact steps of the scheduler, then a real engine."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from predictor.engine.encoding.batching import BatchLimits, TextQueue
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.prefix_cache import PrefixCache
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.scheduler import Scheduler, Step
from tests.conftest import Checkpoints
from tests.serving import Collected, bring_up, metric


def scheduler(
    *, kv: int = 1000, sequences: int = 4, chunk: int = 64, breakeven_tokens: int = 0, **kinds: Any
) -> Scheduler:
    return Scheduler(SchedulerLimits(kv, sequences, chunk, breakeven_tokens, **kinds))


def advance(scheduler: Scheduler) -> Step:
    """Plan and compute a step; every sequence with a next token continues."""
    step = scheduler.plan()
    done = [c.key for rows in step.batches for c in rows if scheduler.mark_computed(c)]
    for key in done:
        scheduler.append_token(key)
    return step


def keys(step: Step) -> set[int]:
    return {chunk.key for rows in step.batches for chunk in rows}


def with_bulk(count: int, tokens: int = 5, **limits: Any) -> Scheduler:
    """A scheduler in which bulk sequences decode, under the keys 0, 1, 2, ..."""
    new = scheduler(**limits)
    for key in range(count):
        new.add(key, tokens, is_bulk=True)
    while len(keys(advance(new))) < count or any(new._running[k].left > 1 for k in range(count)):
        pass
    return new


def test_a_request_takes_the_place_of_the_last_bulk_sequence_before_any_pass() -> None:
    s = with_bulk(4)
    s.add(9, 7)

    assert s.plan() == Step((3,), ())
    assert keys(s.plan()) == {9}
    assert s.running_keys == {0, 1, 2, 9}
    assert s.waiting == 1


def test_a_request_takes_the_kv_cache_of_as_many_as_it_needs() -> None:
    s = with_bulk(4, tokens=20, kv=160, sequences=64)
    s.add(9, 60)

    preempted = s.plan()
    assert preempted.batches == ()
    assert preempted.preempted == (3, 2)
    assert keys(s.plan()) == {9}


def test_no_bulk_work_is_preempted_for_a_request_that_would_not_have_room_even_so() -> None:
    s = scheduler()
    s.add(0, 500)
    for key in (1, 2):
        s.add(key, 90, is_bulk=True)
    for _ in range(12):
        advance(s)
    s.add(9, 490)

    for _ in range(5):
        assert advance(s).preempted == ()
    assert s.running_keys == {0, 1, 2}
    s.remove(0)
    assert s.plan().preempted == ()
    assert s.running_keys == {1, 2, 9}


def test_behind_a_request_without_room_another_takes_that_of_bulk_work() -> None:
    s = scheduler()
    s.add(0, 500)
    s.add(1, 400, is_bulk=True)
    for _ in range(9):
        advance(s)
    s.add(8, 490)
    s.add(9, 300)

    assert advance(s) == Step((1,), ())
    assert advance(s).batches
    assert s.running_keys == {0, 9}


@pytest.mark.parametrize(
    ("shared_by", "newcomer", "is_preempted"),
    [
        ("bulk", 150, False),  # bulk work gives back its common prefix once
        ("bulk", 130, True),
        ("requests", 230, True),  # they keep one copy of theirs
        ("newcomer", 300, True),  # its prefix is that of requests
        ("newcomer and bulk", 150, False),  # its prefix goes with bulk work
    ],
)
def test_what_bulk_work_would_leave_is_counted_with_the_prefixes_in_common(
    shared_by: str, newcomer: int, is_preempted: bool
) -> None:
    pages, tokens = PagePool(401, 400), {}
    prefixes = PrefixCache(pages, tokens.__getitem__)
    s = Scheduler(SchedulerLimits(400, 8, 512, breakeven_tokens=1000), prefixes)

    def add(key: int, count: int, start: int, *, is_bulk: bool = False) -> None:
        same = min(count - 1, 64)
        tokens[key] = [*range(start, start + same), *range(1000 * key, 1000 * key + count - same)]
        prefixes.begin(key, b"")
        s.add(key, count, is_bulk=is_bulk)

    def step() -> Step:
        planned = s.plan()
        for chunk in (chunk for rows in planned.batches for chunk in rows):
            pages.take(chunk.key, chunk.end)
            prefixes.enter(chunk)
            s.mark_computed(chunk)
        return planned

    if shared_by == "requests":
        layout = [(1, 70, 0, False), (2, 70, 0, False), (3, 150, 200, True)]
    elif shared_by == "newcomer":
        layout = [(1, 100, 0, False), (3, 150, 200, True)]
    else:
        layout = [(1, 250, 300, False), (3, 70, 0, True), (4, 70, 0, True)]
    for key, count, start, is_bulk in layout:
        add(key, count, start, is_bulk=is_bulk)
        step()
    assert s.running == len(layout)
    add(9, newcomer, 0 if "newcomer" in shared_by else 600)
    assert bool(step().preempted) == is_preempted
    if is_preempted:
        step()
        assert 9 in s.running_keys


def test_several_requests_begin_in_the_same_step() -> None:
    s = with_bulk(4)
    s.add(8, 7)
    s.add(9, 7)

    assert s.plan() == Step((3,), ())
    assert s.plan() == Step((2,), ())
    s.plan()
    assert s.running_keys == {0, 1, 8, 9}


def test_bulk_work_that_was_preempted_goes_on_with_all_its_tokens() -> None:
    s = with_bulk(1, sequences=1)
    s.add(9, 3)
    assert s.plan().preempted == (0,)
    while 9 in s.running_keys or s.waiting == 2:
        advance(s)
        if 9 in s.running_keys and s._running[9].tokens > 6:
            s.remove(9)

    assert s.plan().batches == ((Chunk(0, 0, 6),),)


def test_no_bulk_work_begins_while_a_request_waits_without_room() -> None:
    s = scheduler(sequences=2)
    for key in range(3):
        s.add(key, 5)
    s.add(9, 1, is_bulk=True)
    advance(s)

    assert s.running_keys == {0, 1}
    s.remove(0)
    advance(s)
    assert s.running_keys == {1, 2}
    s.remove(1)
    advance(s)
    assert s.running_keys == {2, 9}


def test_beside_a_request_bulk_work_gets_what_costs_no_more_than_a_pass() -> None:
    s = with_bulk(3, breakeven_tokens=3)
    s.add(9, 1)

    assert keys(s.plan()) == {9, 0, 1}


def test_beside_a_prompt_as_long_as_that_bulk_work_waits() -> None:
    s = with_bulk(3, breakeven_tokens=8)
    s.add(9, 20)

    assert s.plan().batches == ((Chunk(9, 0, 20),),)


def test_beside_a_request_a_long_prompt_of_bulk_work_is_computed_in_what_is_left() -> None:
    s = scheduler(breakeven_tokens=8)
    s.add(9, 1)
    s.add(0, 20, is_bulk=True)

    counts = [sum(c.count for rows in advance(s).batches for c in rows if not c.key) for _ in "abc"]
    assert counts == [7, 7, 6]


def test_bulk_work_that_decodes_goes_on_beside_a_request_and_a_long_prompt_of_bulk_work() -> None:
    s = scheduler(breakeven_tokens=8)
    s.add(0, 30, is_bulk=True)
    s.add(1, 2, is_bulk=True)
    while s._running.get(1) is None or s._running[1].tokens < 4:
        advance(s)
    s.add(2, 30, is_bulk=True)
    s.add(9, 1)

    for _ in range(3):
        assert keys(advance(s)) == {0, 1, 2, 9}


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_prompt_that_begins_a_state_is_not_cut_and_others_pass_it(one_by_one: bool) -> None:
    s = scheduler(breakeven_tokens=8, keeps_state=True, one_by_one=one_by_one)
    s.add(9, 1)
    s.add(0, 20, is_bulk=True)
    s.add(1, 6, is_bulk=True)

    assert [keys(advance(s)) for _ in range(2)] == [{9, 1}, {9, 1}]


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_prompt_that_is_not_cut_is_computed_once_several_steps_have_left_as_much(
    one_by_one: bool,
) -> None:
    s = scheduler(breakeven_tokens=8, keeps_state=True, one_by_one=one_by_one)
    s.add(9, 1)
    s.add(0, 20, is_bulk=True)

    steps = [[c.count for rows in advance(s).batches for c in rows if c.key == 0] for _ in "abcd"]
    assert steps == [[], [], [20], [1]]  # 7 tokens are left in each


def test_steps_that_a_request_fills_leave_nothing_and_take_nothing_of_what_is_left() -> None:
    s = scheduler(breakeven_tokens=8, keeps_state=True)
    s.add(9, 1)
    s.add(0, 20, is_bulk=True)
    advance(s), advance(s)
    s.add(1, 30)

    assert keys(advance(s)) == {9, 1}
    assert 0 in keys(advance(s))


def test_a_long_prompt_of_bulk_work_continues_its_state_beside_a_request_that_never_ends() -> None:
    s = scheduler(kv=10_000, chunk=64, breakeven_tokens=8, keeps_state=True)
    s.add(9, 1)
    s.add(0, 400, is_bulk=True)
    counts = [c.count for _ in range(70) for rows in advance(s).batches for c in rows if not c.key]

    assert counts[:8] == [16, *[64] * 6, 1]


@pytest.mark.parametrize("first", [300, 5, 2000])
def test_all_bulk_work_ends_beside_a_request_that_never_does(first: int) -> None:
    s = scheduler(kv=100_000, sequences=16, chunk=512, breakeven_tokens=16)
    s.add(0, 10)
    for key, tokens in enumerate((first, *[5] * 20, 90, 400), 1):
        s.add(key, tokens, is_bulk=True)
    ended = 0
    for _ in range(1000):
        advance(s)
        for key in [k for k in s.running_keys if k and s._running[k].cached > 2010 - first]:
            s.remove(key)
            ended += 1
        for key in [k for k in s.running_keys if k and s._running[k].tokens > first + 10]:
            s.remove(key)
            ended += 1
    assert (ended, s.running_keys) == (23, {0})


def test_a_prompt_of_bulk_work_waits_for_those_of_requests() -> None:
    s = scheduler(breakeven_tokens=30, chunk=8)
    s.add(0, 4, is_bulk=True)
    s.add(9, 8)

    assert advance(s).batches[0] == (Chunk(9, 0, 8),)
    assert keys(s.plan()) == {0, 9}


def test_if_the_cache_overflows_bulk_work_is_preempted_first() -> None:
    s = with_bulk(1, tokens=40, kv=64)
    s.add(9, 7)
    while not (step := advance(s)).preempted:
        pass

    assert step.preempted == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_requests_run_as_if_there_were_no_bulk_work(seed: int) -> None:
    chance = random.Random(seed)
    plain, mixed = scheduler(kv=300, chunk=16), scheduler(kv=300, chunk=16)
    for key in range(100, 130):
        mixed.add(key, chance.randint(1, 40), is_bulk=True)
    for _ in range(chance.randint(1, 9)):
        advance(mixed)
    for key in range(8):
        tokens = chance.randint(1, 40)
        plain.add(key, tokens)
        mixed.add(key, tokens)
    for _ in range(60):
        step = advance(mixed)
        while not step.batches and step.preempted:
            step = advance(mixed)
        assert step.batches == advance(plain).batches
        if chance.random() < 0.3 and plain.running_keys:
            ended = min(plain.running_keys)
            plain.remove(ended)
            mixed.remove(ended)
        if not plain.running:
            break


def test_every_sequence_of_bulk_work_ends_once_requests_stop() -> None:
    s = with_bulk(4, kv=120)
    for key in range(10, 30):
        s.add(key, 30, is_bulk=True)
    ended = set()
    for _ in range(3000):
        advance(s)
        for key in [k for k in s.running_keys if s._running[k].tokens >= 50]:
            s.remove(key)
            ended.add(key)

    assert len(ended) == 24


def test_a_text_of_a_request_is_in_the_next_forward_pass() -> None:
    queue = TextQueue(BatchLimits(tokens=32, rows=4))
    for key in range(8):
        queue.add(key, 4, is_bulk=True)
    queue.add(9, 30)
    queue.add(10, 31)

    assert queue.take_batch() == [9]
    assert queue.take_batch() == [10]
    assert len(queue.take_batch()) == 4


def test_a_real_engine_gives_the_same_tokens_and_serves_the_request_first(
    checkpoints: Checkpoints,
) -> None:
    up = bring_up(checkpoints("bloom"), max_batch_size=2, device_map="cpu")
    engine = up.task.engine
    alone = up.tokens([5, 6, 7], max_new_tokens=40)
    order: list[str] = []
    bulk = [Collected(lambda _, n=n: order.append(f"bulk {n}")) for n in range(6)]
    for each in bulk:
        engine.submit([5, 6, 7], SamplingParams(max_new_tokens=40), each, is_bulk=True)
    request = Collected(lambda _: order.append("request"))
    engine.submit([5, 6, 7], SamplingParams(max_new_tokens=40), request)

    assert request.wait().tokens == alone
    assert sum(not each.ended.is_set() for each in bulk) >= 4
    assert all(each.wait().tokens == alone for each in bulk)


def test_bulk_work_that_waits_is_counted_apart() -> None:
    s = with_bulk(2, sequences=2)
    s.add(8, 5, is_bulk=True)
    s.add(9, 5)

    assert (s.waiting, s.waiting_bulk) == (2, 1)
    s.plan()
    s.plan()
    assert (s.waiting, s.waiting_bulk) == (2, 2)


def test_the_times_of_bulk_work_are_not_those_of_requests(checkpoints: Checkpoints) -> None:
    up = bring_up(checkpoints("bloom"), device_map="cpu", model_name="apart")
    kinds = ("queue", "time_to_first_token", "inter_token")
    names = [f"predictor_{kind}_seconds_count" for kind in kinds]
    for is_bulk, counts in ((True, [0, 0, 0]), (False, [1, 1, 3])):
        one = Collected()
        up.task.engine.submit([5, 6], SamplingParams(max_new_tokens=4), one, is_bulk=is_bulk)
        one.wait()
        assert [metric(name, "apart") for name in names] == counts
    assert metric("predictor_generated_tokens_total", "apart") >= 8


def test_bulk_work_that_yields_is_no_sign_of_a_full_cache(checkpoints: Checkpoints) -> None:
    up = bring_up(checkpoints("bloom"), device_map="cpu", model_name="yielding", max_batch_size=1)
    is_running = threading.Event()
    bulk, request = Collected(lambda _: is_running.set()), Collected()
    up.task.engine.submit([5, 6], SamplingParams(max_new_tokens=90), bulk, is_bulk=True)
    assert is_running.wait(20)
    up.task.engine.submit([5, 6], SamplingParams(max_new_tokens=1), request)
    request.wait()
    assert not bulk.ended.is_set()
    bulk.wait()

    assert metric("predictor_preemptions_total", "yielding") == 0
