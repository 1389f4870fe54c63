"""Everything at a time: prefixes, drafts, adapters and preemption; bulk work and small chunks."""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from predictor.checkpoint.adapters import read_adapter
from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS, PADDING_PAGES
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.prefix_cache import PrefixCache
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.scheduler import Scheduler, Step
from tests.adapters import merged, write_adapter
from tests.checkpoints import VOCABULARY
from tests.engine.test_contamination import Ask, Company, check, generated, tiny
from tests.engine.test_drafts import Drafting
from tests.engine.test_engine import KV_TOKENS, RunningEngine, batch_runner
from tests.engine.test_prefix_scheduling import SharingSimulation
from tests.engine.test_scheduler import Simulation
from tests.serving import Collected, metric

# In the engine

NAMES = (None, "one", "two")
TARGETS = ("q_proj", "v_proj", "down_proj")
SCALE = 2.0
"""Alpha over rank of `write_adapter`."""

POOL = 192
"""Tokens of a pool so small that sequences are preempted."""

STRANGER = 10
"""The request of another tenant."""


@functools.cache
def repetitive() -> Any:
    """Returns a model that says a few tokens only, so that lookup's drafts are right at times."""
    model = copy.deepcopy(tiny("llama"))
    with torch.no_grad():
        model.lm_head.weight[8:] = 0
    return model


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, repetitive(), TARGETS, seed=seed)
        for seed, name in enumerate(NAMES)
        if name is not None
    }


@pytest.fixture(scope="module")
def models(paths: dict[str, Path]) -> dict[str | None, Any]:
    """The base, and each adapter merged into its weights."""
    by_name = {
        name: merged(copy.deepcopy(repetitive()), path, SCALE) for name, path in paths.items()
    }
    return {None: repetitive(), **by_name}


def asks() -> list[Ask]:
    """Returns requests whose prompts begin alike, of each adapter in turn; every fourth samples."""
    chance = random.Random(7)
    common = [chance.randrange(4, VOCABULARY) for _ in range(40)]
    requests, at = [], 0
    for index in range(18):
        own = [chance.randrange(4, VOCABULARY) for _ in range(chance.randint(1, 6))]
        sampled = {"temperature": 1.0, "top_k": 8, "seed": index} if index % 4 == 3 else {}
        params = SamplingParams(chance.randint(20, 45), adapter=NAMES[index % 3], **sampled)
        gone = at + chance.randint(40, 80) if index in (4, 9) else None
        scope = b"another" if index == STRANGER else b""
        requests.append(Ask(common[: chance.choice([33, 40])] + own, params, at, gone, scope))
        at += chance.choice([0, 0, 1, 2])
    return requests


def alone(model: Any, ask: Ask) -> list[int]:
    """Returns the tokens of `generate`; those of an engine with nothing else if it samples."""
    if not ask.sampling.temperature:
        return generated(model, ask).tokens
    limits = SchedulerLimits(KV_TOKENS, sequences=1, chunk=64)
    with RunningEngine(batch_runner(model), limits=limits) as opened:
        callback = Collected()
        opened.engine.submit(ask.prompt, replace(ask.sampling, adapter=None), callback)
        return callback.wait().tokens


def test_with_prefixes_drafts_adapters_and_preemption_everyone_gets_the_tokens_that_it_gets_alone(
    paths: dict[str, Path], models: dict[str | None, Any]
) -> None:
    requests = asks()
    expected = [alone(models[ask.sampling.adapter], ask) for ask in requests]
    base = copy.deepcopy(repetitive())
    adapters = LoadedAdapters(base, [read_adapter(*item) for item in paths.items()], "cpu")
    runner = batch_runner(base, kv_tokens=POOL, adapters=adapters)
    company = Company(
        runner,
        requests,
        kv_tokens=POOL,
        cache=runner.cache,
        breakeven_tokens=64,
        chunk=64,
        reply_chunk=16,
        draft_tokens=7,
    )
    replies = company.run()
    check(requests, replies, expected)
    for name in NAMES:
        of_one = [
            reply.cached
            for reply, ask in zip(replies, requests, strict=True)
            if ask.sampling.adapter == name
        ]
        assert sum(of_one) >= 2 * BLOCK_TOKENS
        assert of_one[0] == 0, "the first of an adapter has nobody's prefix"
    assert replies[STRANGER].cached == 0
    assert metric("predictor_draft_tokens_accepted_total", company.name, source="lookup") > 0
    assert company.preemptions > 0
    assert any(
        {row.adapter for row in rows} == set(NAMES) and any(row.drafts for row in rows)
        for rows in company.runner.passes
    )
    assert (runner.cache.pages.free, runner.cache.pages.shared) == (POOL, 0)


# In the scheduler


class Everything(Drafting, SharingSimulation):
    """A simulation with prefixes, drafts, small chunks beside replies, bulk work and hang-ups."""

    def __init__(self, seed: int, limits: SchedulerLimits, bulk_share: float, hang_ups: float):
        super().__init__(seed)
        self.limits, self.bulk_share, self.hang_ups = limits, bulk_share, hang_ups
        self.longest = self.chance.choice([10, 40, limits.kv_tokens])
        self.rate = self.chance.choice([0.1, 0.6])
        self.pages = PagePool(limits.kv_tokens + PADDING_PAGES, limits.kv_tokens)
        self.prefixes = PrefixCache(self.pages, self.tokens.__getitem__)
        self.scheduler = Scheduler(limits, self.prefixes, self)
        self.prompts: dict[int, int] = {}  # their tokens
        self.yielded = self.idle = 0

    def check_progress(self, step: Step) -> None:
        yields = bool(step.preempted) and self.bulk.issuperset(step.preempted)
        self.yielded += yields
        self.idle = 0 if step.batches else self.idle + 1
        assert step.batches or yields or not self.known_tokens, "nobody comes forward"
        assert self.idle <= self.limits.sequences or not self.known_tokens

    def admitted(self) -> None:
        newcomers = self.scheduler.running_keys - self.running
        if newcomers & self.bulk:
            assert self.bulk.issuperset(self.overtaken.keys() - newcomers), "bulk work goes first"
        Simulation.admitted(self)  # pages go with the prefixes

    def check(self, rows: tuple[Chunk, ...], seen: set[int]) -> None:
        super().check(rows, seen)
        most = max(chunk.known_part.count for chunk in rows)
        is_awaited = any(
            self.known_tokens[key] > self.prompts[key] for key in self.running - self.bulk
        )
        assert most <= self.limits.reply_chunk or not is_awaited, "replies wait for a large chunk"

    def arrive(self) -> None:
        super().arrive()
        self.prompts[self.arrivals - 1] = self.known_tokens[self.arrivals - 1]


LIMITS = st.builds(
    SchedulerLimits,
    kv_tokens=st.integers(40, 300),
    sequences=st.integers(1, 8),
    chunk=st.sampled_from([1, 4, 16, 64]),
    breakeven_tokens=st.sampled_from([8, 32, 1000]),
    max_attention_tokens=st.sampled_from([0, 100, 800]),
    bucket_shapes=st.booleans(),
    draft_tokens=st.sampled_from([1, 4, 15]),
    reply_chunk=st.sampled_from([1, 3, 16]),
)


def test_with_all_of_it_everyone_ends_and_the_pool_never_overflows() -> None:
    simulations: list[Everything] = []

    # A smaller example of what chance brings about says no more.
    @settings(max_examples=60, derandomize=True, deadline=None, phases=[Phase.generate])
    @given(
        st.integers(0, 2**16), LIMITS, st.sampled_from([0.1, 0.5]), st.sampled_from([0.003, 0.05])
    )
    def run(seed: int, limits: SchedulerLimits, bulk_share: float, hang_ups: float) -> None:
        limits = replace(limits, reply_chunk=min(limits.reply_chunk, limits.chunk))
        simulation = Everything(seed, limits, bulk_share, hang_ups)
        simulations.append(simulation)
        simulation.run(100)
        assert simulation.pages.free == limits.kv_tokens
        assert simulation.pages.shared == 0

    run()
    counts = ("adopted", "drafted", "accepted", "preempted", "yielded")
    sums = {count: sum(getattr(each, count) for each in simulations) for count in counts}
    assert min(sums.values()) > 20, sums
