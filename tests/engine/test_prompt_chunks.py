"""How large chunks of prompts are: as many tokens as pay, fewer beside replies, in any run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.prompt_chunks import chunk_sizes
from predictor.engine.generation.scheduler import Scheduler
from tests.engine.test_drafts import Drafting


@pytest.mark.parametrize(
    ("breakeven_tokens", "seconds", "planned", "expected"),
    [
        (20, 0.01, 512, (512, 512)),  # a resident model, of which 512 tokens take 0.26 s
        (20, 0.1, 512, (512, 160)),  # a slow one: 160 tokens take 0.8 s, and the replies 0.1
        (300, 2.0, 8192, (2400, 288)),  # an offloaded one: no less than a pass over its weights
        (300, 2.0, 1024, (1024, 288)),  # with little memory
        (4000, 0.2, 8192, (8192, 8192)),  # a GPU
        (3, 2.0, 8192, (512, 16)),
        (0, 2.0, 512, (512, 512)),  # one at a time
    ],
)
def test_chunks_are_as_large_as_pays_and_as_replies_can_wait_for(
    breakeven_tokens: int, seconds: float, planned: int, expected: tuple[int, int]
) -> None:
    sizes = chunk_sizes(
        breakeven_tokens=breakeven_tokens, seconds=seconds, planned=planned, least=512, target=1.0
    )
    assert sizes == expected


LIMITS = SchedulerLimits(1000, 8, 256, breakeven_tokens=16, reply_chunk=32)


def replying(scheduler: Scheduler, *, is_bulk: bool = False) -> None:
    """Bring a sequence into the middle of its reply."""
    scheduler.add(0, 3, is_bulk=is_bulk)
    assert scheduler.mark_computed(scheduler.plan().batches[0][0])
    scheduler.append_token(0)


def test_a_prompt_is_computed_in_large_chunks_while_nobody_is_in_the_middle_of_a_reply() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(0, 300)
    scheduler.add(1, 400)
    assert scheduler.plan().batches == ((Chunk(0, 0, 256),),)


def test_a_prompt_is_computed_in_small_chunks_beside_a_reply_and_in_large_ones_after_it() -> None:
    scheduler = Scheduler(LIMITS)
    replying(scheduler)
    scheduler.add(1, 300)
    step = scheduler.plan()
    assert step.batches == ((Chunk(1, 0, 32),), (Chunk(0, 3, 1),))
    scheduler.mark_computed(Chunk(1, 0, 32))
    scheduler.remove(0)
    assert scheduler.plan().batches == ((Chunk(1, 32, 256),),)


def test_prompts_beside_a_reply_have_no_more_tokens_together() -> None:
    scheduler = Scheduler(replace(LIMITS, breakeven_tokens=1000))
    replying(scheduler)
    for key in range(1, 6):
        scheduler.add(key, 16)
    assert scheduler.plan().batches == ((Chunk(1, 0, 16), Chunk(2, 0, 16), Chunk(0, 3, 1)),)


def test_nobody_waits_for_the_replies_of_bulk_work() -> None:
    scheduler = Scheduler(LIMITS)
    replying(scheduler, is_bulk=True)
    scheduler.add(1, 300)
    assert Chunk(1, 0, 256) in scheduler.plan().batches[0]


def test_a_short_prompt_does_not_wait_for_the_large_chunk_of_a_long_one() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(0, 900)
    scheduler.mark_computed(scheduler.plan().batches[0][0])
    scheduler.add(1, 20)
    assert scheduler.plan().batches == ((Chunk(1, 0, 20),),)


class Paced(Drafting):
    """A simulation whose chunks are small beside replies, with drafts."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.limits = replace(self.limits, reply_chunk=self.chance.choice([1, 3, 16]))
        self.scheduler = Scheduler(self.limits, drafts=self)


def test_with_small_chunks_beside_replies_everyone_ends_and_the_pool_never_overflows() -> None:
    simulations = [Paced(seed) for seed in range(30)]
    for simulation in simulations:
        simulation.run(400)
        assert simulation.pages.free == simulation.limits.kv_tokens
    assert sum(simulation.preempted for simulation in simulations) > 5
