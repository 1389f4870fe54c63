"""How many drafts pay, in exact numbers, and the rules of any run of a scheduler with drafts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from predictor.engine.generation.drafts import Proposal, add_drafts, most_drafts
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits, batch
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.scheduler import Scheduler
from tests.engine.test_scheduler import Simulation

LIMITS = SchedulerLimits(1000, 16, 512, breakeven_tokens=100, draft_tokens=15)


class Fixed:
    """Proposes the same for every sequence."""

    def __init__(self, count: int, rate: float) -> None:
        self.count, self.rate = count, rate

    def allows(self, rows: int) -> bool:
        return True

    def propose(self, key: int, most: int) -> Proposal:
        return Proposal(min(self.count, most), self.rate)


def drafted(rows: int, count: int, rate: float, room: int = 1000, **limits: int) -> list[int]:
    decode = [Chunk(key, 10, 1) for key in range(rows)]
    chunks = add_drafts(decode, Fixed(count, rate), replace(LIMITS, **limits), room)
    assert all(chunk.known_part == Chunk(chunk.key, 10, 1) for chunk in chunks)
    assert all(chunk.count == 1 + chunk.drafts for chunk in chunks)
    return [chunk.drafts for chunk in chunks]


def test_the_expected_tokens_of_a_draft_are_those_of_its_rate() -> None:
    # 1/2 + 1/4 + 1/8 = 7/8
    assert Proposal(3, 0.5).expected(9) == pytest.approx(0.875)
    assert Proposal(9, 0.5).expected(3) == pytest.approx(0.875)
    assert Proposal(4, 1.0).expected(9) == 4
    assert Proposal(4, 0.0).expected(9) == 0


def test_a_sure_draft_is_computed_whole() -> None:
    assert drafted(1, 15, 1.0) == [15]
    assert drafted(1, 6, 1.0) == [6]


def test_an_unsure_draft_is_computed_as_far_as_it_pays() -> None:
    # At a rate of 1/2 the k-th token brings 2^-k and costs 1/101 of the pass and about 2 tokens:
    # (1 + 31/32) / 106 = 0.018573 for k = 5 is more than (1 + 15/16) / 105 and (1 + 63/64) / 107.
    assert drafted(1, 15, 0.5) == [5]


def test_a_draft_that_is_hardly_ever_right_is_not_computed() -> None:
    assert drafted(1, 15, 0.04) == [0]


def test_drafts_fade_out_as_sequences_come() -> None:
    counts = [drafted(rows, 15, 0.8)[0] for rows in (1, 2, 4, 8, 16)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 7
    assert counts[-1] == 0


def test_columns_of_one_bucket_cost_the_same_so_it_is_filled() -> None:
    assert drafted(1, 15, 0.5, bucket_shapes=True) == [7]


def test_no_draft_is_made_where_a_token_costs_as_much_as_a_pass() -> None:
    for breakeven_tokens in (0, 1):
        assert drafted(1, 15, 1.0, breakeven_tokens=breakeven_tokens) == [0]


def test_drafts_take_no_more_room_than_there_is() -> None:
    assert drafted(3, 4, 1.0, room=6) == [4, 2, 0]
    assert drafted(1, 4, 1.0, room=0) == [0]


def test_a_pass_with_drafts_is_within_a_chunk_and_has_no_more_logits_than_are_planned() -> None:
    assert most_drafts(1, replace(LIMITS, chunk=8)) == 7
    assert most_drafts(2, LIMITS) == 7  # 2 x 8 logits of 16 sequences
    assert most_drafts(2, replace(LIMITS, sequences=64)) == 15
    assert most_drafts(1, replace(LIMITS, sequences=1)) == 15  # planned for one sequence
    assert most_drafts(3, replace(LIMITS, bucket_shapes=True)) == 0  # 3 x 8 > 16
    assert most_drafts(0, LIMITS) == most_drafts(1, replace(LIMITS, draft_tokens=0)) == 0


def test_drafts_of_a_sequence_are_computed_with_its_last_known_token() -> None:
    s = Scheduler(LIMITS, drafts=Fixed(3, 1.0))
    s.add(0, 5)
    assert s.plan().batches == ((Chunk(0, 0, 5),),)
    assert s.mark_computed(Chunk(0, 0, 5))
    s.append_token(0)
    assert s.plan().batches == ((Chunk(0, 5, 4, 3),),)


@pytest.mark.parametrize("bucket_shapes", [False, True])
def test_drafts_in_company_of_prompts_are_as_many_as_there_is_room_for_logits(
    bucket_shapes: bool,
) -> None:
    limits = replace(LIMITS, bucket_shapes=bucket_shapes)
    decode = [Chunk(0, 10, 16, 15)]
    for prompts, drafts in ((1, 7), (2, 0 if bucket_shapes else 4), (8, 0)):
        prefill = [Chunk(key, 0, 5) for key in range(1, 1 + prompts)]
        assert batch(prefill, decode, limits) == ((*prefill, Chunk(0, 10, 1 + drafts, drafts)),)


def test_drafts_that_share_no_pass_with_prompts_are_kept() -> None:
    decode = [Chunk(0, 10, 16, 15)]
    prefill = [Chunk(1, 0, 300)]
    assert batch(prefill, decode, LIMITS) == (tuple(prefill), tuple(decode))


def test_a_sequence_that_is_computed_again_alone_has_no_drafts() -> None:
    s = Scheduler(LIMITS, drafts=Fixed(3, 1.0))
    s.add(0, 1)
    s.restart(s.plan().batches[0][0])
    assert s.plan().batches == ((Chunk(0, 0, 1),),)


# Any run


class Drafting(Simulation):
    """A simulation in which sequences have drafts, any number of which are accepted.

    The pages of drafts are taken and given back as the engine does it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.limits = replace(self.limits, draft_tokens=self.chance.choice([1, 4, 15]))
        self.scheduler = Scheduler(self.limits, drafts=self)
        self.pages = PagePool(self.limits.kv_tokens + 1, self.limits.kv_tokens)
        self.drafted = self.accepted = 0

    def allows(self, rows: int) -> bool:
        return True

    def propose(self, key: int, most: int) -> Proposal:
        left = max(0, self.goals[key] - self.known_tokens[key] - 1)
        return Proposal(min(self.chance.randint(0, most), left), self.chance.random())

    def forget(self, key: int) -> None:
        super().forget(key)
        self.pages.release(key)

    def check(self, rows: tuple[Chunk, ...], seen: set[int]) -> None:
        super().check(tuple(chunk.known_part for chunk in rows), seen)
        most = max(chunk.count for chunk in rows)
        computed = self.limits.computed_tokens(len(rows), most)
        assert len(rows) == 1 or most == 1 or computed <= self.limits.chunk
        assert all(chunk.end <= self.limits.kv_tokens for chunk in rows)
        kept = self.limits.computed_tokens(len(rows), 1 + max(chunk.drafts for chunk in rows))
        assert kept <= max(self.limits.sequences, 1 + self.limits.draft_tokens)

    def compute(self, chunk: Chunk) -> None:
        key = chunk.key
        self.pages.take(key, chunk.end)
        accepted = self.chance.randint(0, chunk.drafts)
        self.drafted, self.accepted = self.drafted + chunk.drafts, self.accepted + accepted
        self.pages.truncate(key, chunk.known_part.end + accepted)
        chunk = chunk.known_part
        for _ in range(1 + accepted):
            super().compute(chunk)
            if key not in self.known_tokens:
                return
            chunk = chunk.following

    def admitted(self) -> None:
        super().admitted()
        for key, cached in self.cached.items():
            if not cached:
                self.pages.release(key)  # it may have been preempted


def test_with_drafts_everyone_ends_and_the_pool_never_overflows() -> None:
    simulations = [Drafting(seed) for seed in range(60)]
    for simulation in simulations:
        simulation.run(500)
        assert simulation.pages.free == simulation.limits.kv_tokens
    assert sum(simulation.accepted for simulation in simulations) > 1000
    assert sum(simulation.drafted for simulation in simulations) > 2000
    assert sum(simulation.preempted for simulation in simulations) > 20
