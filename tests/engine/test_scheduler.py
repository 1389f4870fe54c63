"""Arithmetic of the scheduler: exact steps, then rules that hold in any run."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from predictor.engine.fair_queue import MAX_OVERTAKES
from predictor.engine.generation.forward_passes import (
    Chunk,
    SchedulerLimits,
    batch,
    choose_company,
)
from predictor.engine.generation.kv_accounting import PADDING_PAGES, KVLedger
from predictor.engine.generation.kv_room import LOOKAHEAD
from predictor.engine.generation.scheduler import MAX_SET_ASIDE, Scheduler, Step
from predictor.shape_buckets import bucket_context, bucket_new_tokens


def scheduler(
    *prompts: int,
    kv: int = 1000,
    sequences: int = 64,
    chunk: int = 64,
    breakeven_tokens: int = 0,
    **states: int,
) -> Scheduler:
    """Return a scheduler with these prompts in line, under the keys 0, 1, 2, ..."""
    new = Scheduler(SchedulerLimits(kv, sequences, chunk, breakeven_tokens, **states))
    for key, tokens in enumerate(prompts):
        new.add(key, tokens)
    return new


def compute(scheduler: Scheduler, step: Step) -> list[int]:
    """Compute a step; return the sequences with a next token, which is not yet appended."""
    return [chunk.key for rows in step.batches for chunk in rows if scheduler.mark_computed(chunk)]


def advance(scheduler: Scheduler) -> Step:
    """Plan and compute a step; every sequence with a next token continues."""
    step = scheduler.plan()
    for key in compute(scheduler, step):
        scheduler.append_token(key)
    return step


def prefill_all(scheduler: Scheduler) -> None:
    """Prefill all that run or can, and only then append a next token to each."""
    done: list[int] = []
    while (step := scheduler.plan()).batches:
        done += compute(scheduler, step)
    for key in done:
        scheduler.append_token(key)


def keys(rows: Iterable[Chunk]) -> list[int]:
    return [chunk.key for chunk in rows]


# What one sequence goes through


def test_a_prompt_is_read_in_chunks_and_then_goes_on_token_by_token() -> None:
    s = scheduler(20, chunk=8)
    assert s.plan() == Step((), ((Chunk(0, 0, 8),),))
    assert not s.mark_computed(Chunk(0, 0, 8))
    assert s.plan() == Step((), ((Chunk(0, 8, 8),),))
    assert not s.mark_computed(Chunk(0, 8, 8))
    assert s.plan() == Step((), ((Chunk(0, 16, 4),),))
    assert s.mark_computed(Chunk(0, 16, 4))
    assert s.plan() == Step((), ())  # its next token was not appended
    s.append_token(0)
    assert s.plan() == Step((), ((Chunk(0, 20, 1),),))
    assert s.cached == 20


def test_with_a_state_rows_that_begin_share_no_pass_with_rows_that_continue() -> None:
    s = scheduler(1, 3, chunk=64, breakeven_tokens=64, keeps_state=True)
    assert advance(s).batches == ((Chunk(0, 0, 1), Chunk(1, 0, 3)),)
    s.add(2, 1)
    assert advance(s).batches == ((Chunk(2, 0, 1),), (Chunk(1, 3, 1), Chunk(0, 1, 1)))


def test_with_a_state_only_chunks_of_one_length_continue_together() -> None:
    limits = SchedulerLimits(1000, 64, 64, breakeven_tokens=64, keeps_state=True)
    chunks = [Chunk(0, 8, 4), Chunk(1, 3, 4), Chunk(2, 9, 3), Chunk(3, 0, 4)]
    assert keys(choose_company(chunks, limits)) == [0, 1]
    assert keys(choose_company(chunks[2:], limits)) == [2]
    assert batch(chunks[:2], [Chunk(4, 9, 1)], limits) == (tuple(chunks[:2]), (Chunk(4, 9, 1),))


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 127, 128, 200])
def test_with_a_state_only_the_first_chunk_of_a_prompt_may_be_of_another_length(
    tokens: int,
) -> None:
    s = scheduler(tokens, chunk=64, keeps_state=True)
    chunks = [advance(s).batches[0][0] for _ in range(-(-tokens // 64))]
    assert [chunk.count for chunk in chunks[1:]] == [64] * (len(chunks) - 1)
    assert chunks[-1].end == tokens


def test_with_a_state_short_rows_that_take_as_much_as_long_ones_count_as_such() -> None:
    limits = SchedulerLimits(1000, 64, 64, breakeven_tokens=64, least_row_tokens=16)
    chunks = [Chunk(key, 0, 1) for key in range(6)]
    assert keys(choose_company(chunks, limits)) == [0, 1, 2, 3]
    assert keys(choose_company([Chunk(9, 0, 17), *chunks], limits)) == [9, 0]


def test_where_states_continue_one_by_one_prompts_go_on_with_the_replies() -> None:
    s = scheduler(4, 10, chunk=6, breakeven_tokens=64, keeps_state=True, one_by_one=True)
    assert advance(s).batches == ((Chunk(0, 0, 4),),)
    assert advance(s).batches == ((Chunk(1, 0, 6),), (Chunk(0, 4, 1),))
    assert advance(s).batches == ((Chunk(1, 6, 1), Chunk(0, 5, 1)),)
    assert advance(s).batches == ((Chunk(1, 7, 1), Chunk(0, 6, 1)),)


def test_without_keys_of_tokens_all_run_whatever_their_length() -> None:
    s = scheduler(30, 30, 30, 5, kv=32, breakeven_tokens=64, keeps_tokens=False)
    assert keys(s.plan().batches[0]) == [
        3,
        0,
    ]  # the tokens computed are within a chunk all the same
    prefill_all(s)
    for _ in range(20):
        step = advance(s)
        assert keys(step.batches[0]) == [0, 1, 2, 3]
        assert not step.preempted
    assert (s.running, s.waiting, s.cached) == (4, 0, 0)


def test_a_chunk_that_was_not_fed_is_planned_again() -> None:
    s = scheduler(20, chunk=8)
    assert s.plan() == s.plan() == Step((), ((Chunk(0, 0, 8),),))


def test_a_prompt_of_one_token_is_read_like_a_token_that_was_generated() -> None:
    s = scheduler(1, 1)
    assert s.plan() == Step((), ((Chunk(0, 0, 1), Chunk(1, 0, 1)),))


@pytest.mark.parametrize("tokens", [0, 101])
def test_a_sequence_that_could_never_run_is_refused(tokens: int) -> None:
    s = scheduler(kv=100)
    with pytest.raises(ValueError, match="never fit 100"):
        s.add(0, tokens)
    assert s.plan() == Step((), ())
    s.add(0, 100)
    assert s.plan().batches == ((Chunk(0, 0, 64),),)


# Admission


def test_a_newcomer_needs_room_for_itself_and_a_lookahead_for_everyone_who_runs() -> None:
    # 40 run. 40 + 44 + 16 = 100 fits, 45 would not; then 84 run and 1 + 84 + 2 * 16 does not.
    assert LOOKAHEAD == 16
    s = scheduler(40, 45, kv=100)
    s.plan()
    assert (s.running, s.waiting) == (1, 1)
    s = scheduler(40, 44, 1, kv=100)
    s.plan()
    assert (s.running, s.waiting) == (2, 1)


def test_no_lookahead_is_asked_of_the_first() -> None:
    s = scheduler(100, kv=100)
    s.plan()
    assert s.running == 1


def test_no_more_run_than_the_limit_says_and_they_run_in_order_of_arrival() -> None:
    s = scheduler(5, 5, 5, 5, sequences=2)
    assert sorted(keys(s.plan().batches[0])) == [0, 1]
    assert (s.running, s.waiting) == (2, 2)
    s.remove(1)
    assert sorted(keys(s.plan().batches[0])) == [0, 2]
    s.remove(0)
    assert sorted(keys(s.plan().batches[0])) == [2, 3]


def test_room_counts_generated_tokens_too() -> None:
    # 30 + 20 + 16 = 66 fits at first; after 5 tokens of the first it is 71.
    s = scheduler(30, kv=66)
    for _ in range(5):
        advance(s)
    s.add(1, 20)
    s.plan()
    assert (s.running, s.waiting) == (1, 1)
    s.add(2, 15)  # 35 + 15 + 16 = 66
    s.plan()
    assert (s.running, s.waiting) == (2, 1)


def test_room_counts_what_is_within_windows_too() -> None:
    # Four windows of 10: long sequences take one each; 3 * 10 + 5 = 35 leave room for one of 5.
    s = scheduler(50, 60, 70, 5, 6, 2, window=10, window_tokens=40)
    s.plan()
    assert s.running_keys == {0, 1, 2, 3}
    s.remove(0)
    s.plan()
    assert s.running_keys == {1, 2, 3, 4}  # 5 and 6 may both grow to 10
    s.remove(4)
    s.plan()
    assert s.running_keys == {1, 2, 3, 5}


def test_who_outgrows_the_windows_is_preempted() -> None:
    # 8 and 8 grow to 10 in a step each; a third of 2 has room: 8 + 8 + 2 + lookahead of 2 * 2.
    s = scheduler(8, 8, 2, window=10, window_tokens=22)
    prefill_all(s)
    assert s.running_keys == {0, 1, 2}
    steps = [advance(s) for _ in range(3)]
    assert [step.preempted for step in steps] == [(), (2,), ()]


def test_the_first_in_line_is_overtaken_by_shorter_ones_no_more_often_than_the_limit() -> None:
    # 40 run; 60 more never fit beside them, 10 do: 40 + 10 + 16 = 66.
    s = scheduler(40, 60, kv=100)
    advance(s)
    for key in range(2, 2 + MAX_OVERTAKES):
        s.add(key, 10)
        s.plan()
        assert s.running == 2
        s.remove(key)
    s.add(20, 10)
    s.plan()
    assert (s.running, s.waiting) == (1, 2)  # nobody overtakes any more
    s.remove(0)
    s.plan()
    assert (s.running, s.waiting) == (2, 0)  # 60 + 10 + 16 = 86: the next follows


def test_the_limit_counts_those_that_overtake_in_one_step_too() -> None:
    # 400 run; 600 more never fit; ten of 10 would all: 400 + 100 + 10 * 16 = 660.
    s = scheduler(400, 600, *[10] * 10, kv=1000)
    s.plan()
    assert (s.running, s.waiting) == (1 + MAX_OVERTAKES, 1 + 2)


@pytest.mark.parametrize("waiting", [100, 10_000])
def test_a_step_looks_at_no_more_sequences_however_many_wait(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scheduler(500, *[600] * waiting)  # none has room beside the first
    looked_at = 0

    original = KVLedger.has_room

    def has_room(self: KVLedger, tokens: int, **running: int) -> bool:
        nonlocal looked_at
        looked_at += 1
        return original(self, tokens, **running)

    monkeypatch.setattr(KVLedger, "has_room", has_room)
    s.plan()
    assert looked_at == 1 + MAX_SET_ASIDE
    s.plan()
    assert looked_at == 1 + MAX_SET_ASIDE  # nothing has changed
    s.remove(1)
    s.plan()
    assert looked_at == 1 + 2 * MAX_SET_ASIDE
    assert (s.running, s.waiting) == (1, waiting - 1)


# Fairness between requests


def lists(callers: int, sequences: int) -> Scheduler:
    """Return a scheduler of one place, with a list of short prompts from each caller in line."""
    s = scheduler(sequences=1)
    for key in range(callers * sequences):
        s.add(key, 5, request=key // sequences)
    return s


def run_one(s: Scheduler) -> int:
    """Run the next sequence to its end and return its key."""
    (chunk,) = s.plan().batches[0]
    s.remove(chunk.key)
    return chunk.key


def test_a_lone_sequence_gets_the_next_place_or_the_one_after() -> None:
    s = lists(callers=32, sequences=256)
    for lone in range(10_000, 10_100):
        run_one(s)
        s.add(lone, 5)
        assert lone in (run_one(s), run_one(s))


def test_lists_of_two_requests_take_turns() -> None:
    s = lists(callers=2, sequences=3)
    assert [run_one(s) for _ in range(6)] == [0, 3, 1, 4, 2, 5]


def test_of_two_requests_the_list_is_preempted_and_not_its_lone_neighbour() -> None:
    # A list's two and a neighbour who came last, 10 known each: 51 after 7 tokens of each.
    s = scheduler(kv=50, chunk=32)
    s.add(0, 8, request=1)
    s.add(1, 8, request=1)
    s.plan()
    s.add(2, 2)
    prefill_all(s)
    while not (step := advance(s)).preempted:
        pass
    assert step.preempted == (1,)


# Reading prompts


def test_prompts_of_one_length_share_a_pass_without_any_padding() -> None:
    # 2 * 30 = 60 are within the chunk of 64, and as many as in two passes; a third would make 90.
    s = scheduler(30, 30, 30)
    assert s.plan().batches == ((Chunk(0, 0, 30), Chunk(1, 0, 30)),)


@pytest.mark.parametrize(
    ("breakeven_tokens", "passes"),
    [(6, ((Chunk(1, 0, 24), Chunk(0, 0, 30)),)), (5, ((Chunk(1, 0, 24),),))],
)
def test_prompts_share_a_pass_where_padding_costs_no_more_than_a_pass(
    breakeven_tokens: int, passes: object
) -> None:
    # Together 2 * 30 = 60 tokens, apart 30 + 24 = 54: six more.
    s = scheduler(30, 24, breakeven_tokens=breakeven_tokens)
    assert s.plan().batches == passes


def test_the_padded_tokens_of_a_shared_pass_are_within_the_chunk() -> None:
    # 2 * 33 = 66 > 64, cheap as the padding is.
    s = scheduler(33, 32, breakeven_tokens=1000)
    assert s.plan().batches == ((Chunk(1, 0, 32),),)
    s = scheduler(32, 31, breakeven_tokens=1000)  # 2 * 32 = 64
    assert s.plan().batches == ((Chunk(1, 0, 31), Chunk(0, 0, 32)),)


def test_rows_times_the_longest_of_a_shared_pass_are_within_the_kv_budget() -> None:
    # 60 + 24 + 16 = 100 run. The first has 61 known: 2 * 61 = 122 > 100.
    s = scheduler(60, kv=100, breakeven_tokens=1000)
    advance(s)
    s.add(1, 23)
    assert s.plan().batches == ((Chunk(1, 0, 23),), (Chunk(0, 60, 1),))
    s = scheduler(49, kv=100, breakeven_tokens=1000)  # 50 known: 2 * 50 = 100
    advance(s)
    s.add(1, 23)
    assert s.plan().batches == ((Chunk(1, 0, 23), Chunk(0, 49, 1)),)


@pytest.mark.parametrize(
    ("breakeven_tokens", "passes"),
    [(3, ((Chunk(1, 0, 4), Chunk(0, 10, 1)),)), (2, ((Chunk(1, 0, 4),), (Chunk(0, 10, 1),)))],
)
def test_a_prompt_takes_the_tokens_of_others_along_where_that_costs_no_more_than_a_pass(
    breakeven_tokens: int, passes: object
) -> None:
    # Together 2 * 4 = 8 tokens, apart 4 + 1 = 5: three more.
    s = scheduler(10, breakeven_tokens=breakeven_tokens)
    advance(s)
    s.add(1, 4)
    assert s.plan().batches == passes


def test_a_short_prompt_goes_with_the_next_chunk_of_a_long_one() -> None:
    s = scheduler(1500, chunk=512, kv=4000)
    assert advance(s).batches == ((Chunk(0, 0, 512),),)
    s.add(1, 20)
    # Beside 512 tokens it would make 1024, so it goes first, alone.
    assert advance(s).batches == ((Chunk(1, 0, 20),),)
    assert advance(s).batches == ((Chunk(0, 512, 512),), (Chunk(1, 20, 1),))


def test_a_long_prompt_is_overtaken_by_short_ones_no_more_often_than_the_limit() -> None:
    s = scheduler(1500, chunk=512, kv=4000)
    order = []
    for key in range(1, 40):
        s.add(key, 20)
        step = s.plan()
        order.append(keys(step.batches[0]))
        for done in compute(s, step):
            s.remove(done)
    # Eight short ones, a chunk, eight short ones, a chunk, ... and the prompt is read.
    turns = [index for index, rows in enumerate(order) if rows == [0]]
    assert turns == [MAX_OVERTAKES, 2 * MAX_OVERTAKES + 1, 3 * MAX_OVERTAKES + 2]
    # The one that waited for a chunk goes with the next, at no cost; all in order of arrival.
    assert order[MAX_OVERTAKES + 1] == [MAX_OVERTAKES + 1, MAX_OVERTAKES + 2]
    assert [key for rows in order for key in rows if key] == list(range(1, 40))


def test_a_chunk_of_a_long_prompt_gives_no_short_one_priority() -> None:
    s = scheduler(1500, chunk=512, kv=4000)
    for key in range(1, 1 + MAX_OVERTAKES):
        s.add(key, 20)
        s.plan()
        s.remove(key)
    s.add(20, 20)
    s.add(21, 19)
    assert advance(s).batches == ((Chunk(0, 0, 512),),)
    assert advance(s).batches == ((Chunk(21, 0, 19),),)  # still the shortest first


# Passes of one token


def test_rows_times_the_longest_of_a_pass_are_within_the_kv_budget() -> None:
    # Known 50, 20 and 10: 2 * 50 = 100 fit 110 and 3 * 50 do not.
    s = scheduler(49, 19, 9, kv=110)
    prefill_all(s)
    assert s.plan().batches == ((Chunk(0, 49, 1), Chunk(1, 19, 1)), (Chunk(2, 9, 1),))


def test_as_few_passes_as_possible_the_longest_first() -> None:
    # Known 60, 10, 10, 10, 10 (the third to fifth need no room beyond 60 + 40 + 4 * 16 = 164).
    s = scheduler(9, 9, 59, 9, 9, kv=164)
    prefill_all(s)
    # 2 * 60 = 120 fit 164 and 3 * 60 do not; then 3 * 10.
    assert [keys(rows) for rows in s.plan().batches] == [[2, 0], [1, 3, 4]]


# Preemption


def test_the_last_to_have_arrived_goes_back_to_its_place_in_the_line() -> None:
    # Known 10 and 10, each with one more token in a step: 50 after 15 steps, 52 after 16.
    s = scheduler(10, 10, kv=50, chunk=32)
    s.plan()
    s.add(2, 30)  # no room yet
    prefill_all(s)
    for _ in range(14):
        assert advance(s).preempted == ()
    assert (s.running, s.waiting, s.cached) == (2, 1, 48)
    assert advance(s) == Step((), ((Chunk(0, 24, 1), Chunk(1, 24, 1)),))
    # 52 > 50. The first keeps 26; 26 more and the lookahead of 16 are no room for the second.
    assert advance(s) == Step((1,), ((Chunk(0, 25, 1),),))
    assert (s.running, s.waiting, s.cached) == (1, 2, 26)
    s.remove(0)
    # It is ahead of the one that came after it, and is computed from its beginning.
    assert advance(s) == Step((), ((Chunk(1, 0, 26),),))
    assert (s.running, s.waiting) == (1, 1)


def test_one_that_arrived_before_the_preempted_is_before_it_in_line() -> None:
    # 20 runs; 60 has no room (20 + 60 + 16 > 90), 20 has and passes. They grow to 46 each.
    s = scheduler(20, 60, 20, kv=90)
    prefill_all(s)
    while not (step := advance(s)).preempted:
        pass
    assert step.preempted == (2,)
    s.remove(0)
    assert keys(s.plan().batches[0]) == [1]
    assert (s.running, s.waiting) == (1, 1)


def test_several_are_preempted_where_one_does_not_suffice() -> None:
    # 1, 1 and 1 known: 3 + 2 * 16 fit 36. Only the first grows, to 35 and then to 36.
    s = scheduler(1, 1, 1, kv=36)
    s.plan()
    for _ in range(33):
        s.append_token(0)
    assert s.plan().preempted == ()  # 34 + 1 + 1 = 36
    s.append_token(0)
    assert s.plan().preempted == (2,)
    s.append_token(0)
    assert s.plan().preempted == (1,)
    assert (s.running, s.waiting) == (1, 2)


# Removal


def test_a_sequence_is_removed_wherever_it_stands() -> None:
    s = scheduler(40, 60, 30, kv=100)
    advance(s)  # 0 and 2 run: 40 + 30 + 16
    s.remove(1)
    assert (s.running, s.waiting) == (2, 0)
    s.remove(2)
    s.remove(0)
    assert (s.running, s.waiting, s.cached) == (0, 0, 0)
    s.remove(7)
    assert s.plan() == Step((), ())
    s.add(3, 100)  # the whole budget is free again
    s.plan()
    assert s.running == 1


def test_a_preempted_sequence_is_removed_from_the_line() -> None:
    s = scheduler(1, 1, kv=20)
    s.plan()
    for _ in range(19):
        s.append_token(0)
    assert s.plan().preempted == (1,)
    s.remove(1)
    assert (s.running, s.waiting) == (1, 0)


# Any run


class Simulation:
    """Drives a scheduler like the engine does, with arrivals and cancels by chance.

    It keeps books of its own and holds every step against them.
    """

    bulk_share, hang_ups = 0.0, 0.003
    """The fraction of sequences that are bulk work; the chance that a step takes one away."""

    def __init__(self, seed: int, *, requests: int | None = None) -> None:
        self.requests = requests  # how many submit; None: each sequence is a request of its own
        chance = self.chance = random.Random(seed)
        self.limits = SchedulerLimits(
            kv_tokens=chance.choice([40, 64, 150, 400]),
            sequences=chance.choice([1, 2, 4, 8]),
            chunk=chance.choice([1, 4, 16, 64]),
            breakeven_tokens=chance.choice([0, 0, 8, 32, 1000]),
            max_attention_tokens=chance.choice([0, 100, 800]),
            bucket_shapes=chance.choice([False, True]),
            window=(window := chance.choice([0, 0, 3, 20])),
            window_tokens=window * chance.choice([1, 2, 5]),
        )
        self.scheduler = Scheduler(self.limits)
        self.rate = chance.choice([0.02, 0.1, 0.3])
        self.longest = chance.choice([10, 40, self.limits.kv_tokens])
        self.known_tokens: dict[int, int] = {}  # in order of arrival
        self.cached: dict[int, int] = {}
        self.goals: dict[int, int] = {}
        self.overtaken: dict[int, int] = {}  # for who waits: by how many later ones
        self.running: set[int] = set()
        self.bulk: set[int] = set()
        self.arrivals = 0
        self.preempted = 0
        self.steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.chance.random() < self.rate and len(self.known_tokens) < 24:
                self.arrive()
            if self.known_tokens and self.chance.random() < self.hang_ups:
                self.forget(self.chance.choice(list(self.known_tokens)))
            self.step()
        # All that is left ends: no step is without a pass, so each brings somebody forward.
        most = self.steps + 200 * (1 + sum(self.goals.values()))
        while self.known_tokens:
            self.step()
            assert self.steps < most, "a sequence starves"
        assert self.scheduler.running == self.scheduler.waiting == self.scheduler.cached == 0

    def arrive(self) -> None:
        prompt = self.chance.randint(1, self.longest)
        goal = min(prompt + self.chance.randint(1, 40), self.limits.kv_tokens + 1)
        key = self.arrivals
        self.arrivals += 1
        self.known_tokens[key], self.cached[key], self.goals[key] = prompt, 0, goal
        self.overtaken[key] = 0
        request = None if self.requests is None else self.chance.randrange(self.requests)
        if self.bulk_share and self.chance.random() < self.bulk_share:
            self.bulk.add(key)
        self.scheduler.add(key, prompt, request, is_bulk=key in self.bulk)

    def forget(self, key: int) -> None:
        self.scheduler.remove(key)
        del self.known_tokens[key], self.cached[key], self.goals[key]
        self.overtaken.pop(key, None)
        self.running.discard(key)

    def step(self) -> None:
        step = self.scheduler.plan()
        self.steps += 1
        for key in step.preempted:
            assert key != self.first, "the first to have arrived is preempted"
            self.preempted += 1
            self.cached[key] = self.overtaken[key] = 0
            self.running.discard(key)
        self.admitted()
        self.check_progress(step)
        seen: set[int] = set()
        for rows in step.batches:
            self.check(rows, seen)
        for rows in step.batches:
            self.check_windows(rows)
            for chunk in rows:
                self.compute(chunk)

    @property
    def first(self) -> int:
        """The first to have arrived; of bulk work only if there is nothing else."""
        return min(self.known_tokens, key=lambda key: (key in self.bulk, key))

    def check_progress(self, step: Step) -> None:
        assert step.batches or not self.known_tokens, "nobody comes forward"

    def admitted(self) -> None:
        """Note who runs now, and by how many each waiting sequence was overtaken."""
        running = self.scheduler.running_keys
        if newcomers := running - self.running:
            self.running |= newcomers
            for new in newcomers:
                del self.overtaken[new]
            for key in self.overtaken:
                rivals = newcomers & self.bulk if key in self.bulk else newcomers
                self.overtaken[key] += sum(new > key for new in rivals)
                assert self.requests or self.overtaken[key] <= MAX_OVERTAKES
        assert len(self.running) <= self.limits.sequences
        self.check_room()

    def check_room(self) -> None:
        running = self.scheduler.running_keys
        assert sum([self.known_tokens[key] for key in running]) <= self.limits.kv_tokens

    def check(self, rows: tuple[Chunk, ...], seen: set[int]) -> None:
        most = width = 0
        for chunk in rows:
            key, start, count, end = chunk.key, chunk.start, chunk.count, chunk.end
            assert key not in seen, "a sequence is in two passes"
            seen.add(key)
            assert start == self.cached[key]
            assert count > 0
            assert end <= self.known_tokens[key]
            most = max(most, count)
            width = max(width, end)
        if self.limits.bucket_shapes:
            most, width = bucket_new_tokens(most), bucket_context(width)
        together = max(self.limits.kv_tokens, self.limits.max_attention_tokens)
        assert len(rows) == 1 or len(rows) * width <= together
        # One row alone may be padded over the chunk: it has to be computed somehow.
        assert most == 1 or len(rows) == 1 or len(rows) * most <= self.limits.chunk

    def check_windows(self, rows: tuple[Chunk, ...]) -> None:
        """Count pages of the pool for windows: those that are kept, and those of new tokens."""
        window = self.limits.window
        kept = sum(min(self.cached[key], window - 1) for key in self.running if window)
        new = sum(chunk.count for chunk in rows if window)
        pages = self.limits.window_tokens + self.limits.chunk - PADDING_PAGES
        assert kept + new <= pages

    def compute(self, chunk: Chunk) -> None:
        key = chunk.key
        self.cached[key] += chunk.count
        has_next = self.scheduler.mark_computed(chunk)
        assert has_next == (self.cached[key] == self.known_tokens[key])
        if has_next:
            if self.known_tokens[key] + 1 >= self.goals[key]:
                self.forget(key)
            else:
                self.known_tokens[key] += 1
                self.scheduler.append_token(key)


def test_a_million_steps_keep_all_the_rules_and_everyone_ends() -> None:
    simulations = [Simulation(seed) for seed in range(100)]
    for simulation in simulations:
        simulation.run(10_000)
    assert sum(simulation.steps for simulation in simulations) >= 1_000_000
    assert sum(simulation.preempted for simulation in simulations) > 1_000


def test_no_sequence_of_any_request_starves_and_all_other_rules_hold() -> None:
    simulations = [Simulation(seed, requests=1 + seed % 7) for seed in range(70)]
    for simulation in simulations:
        simulation.run(1_000)
    assert sum(simulation.preempted for simulation in simulations) > 100
