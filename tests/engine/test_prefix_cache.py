"""Prefixes in the engine: computed once, for those who may share them, never of other tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.errors import GenerationFailed
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.engine.test_contamination import ARCHITECTURES, Ask, Company, check, generated, tiny
from tests.engine.test_engine import (
    KV_TOKENS,
    PROMPT,
    RunningEngine,
    Wrapped,
    batch_runner,
    generate,
)
from tests.grids import thinned
from tests.serving import Collected, Up, bring_up, metric
from tests.states import make_checkpoint as make_with_state

SHARING = [name for name in ARCHITECTURES if name not in ("mistral", "gemma3")]
"""Those without windows, of which less is kept than could be shared."""

POOL = 96
"""Tokens of a pool so small that sequences are preempted."""


class Opened(RunningEngine):
    """An engine whose sequences share prefixes, with the passes that it ran."""

    def __init__(self, model: Any, **limits: Any) -> None:
        runner = batch_runner(model)
        self.runner = Wrapped(runner, lambda _: None)
        own = SchedulerLimits(KV_TOKENS, **{"sequences": 8, "chunk": 256} | limits)
        super().__init__(self.runner, limits=own, cache=runner.cache)
        self.pages = runner.cache.pages

    def starts(self) -> list[list[int]]:
        """The first computed token of each row of each pass, since the last call."""
        passes, self.runner.passes = self.runner.passes, []
        return [[row.start for row in rows] for rows in passes]


@pytest.fixture
def opened() -> Iterator[Opened]:
    with Opened(tiny("llama")) as running:
        yield running


def test_a_prefix_is_computed_once_and_the_reply_is_the_same(opened: Opened) -> None:
    wanted = generate(tiny("llama"), PROMPT, 4)
    first, second = (opened.run(PROMPT, max_new_tokens=4) for _ in range(2))
    assert first.tokens == second.tokens == wanted
    assert (first.cached, second.cached) == (0, 48)
    assert opened.starts() == [[0], [50], [51], [52], [48], [50], [51], [52]]
    assert metric("predictor_prompt_tokens_cached_total", opened.name) == 48
    assert metric("predictor_prompt_tokens_total", opened.name) == 100


def test_a_conversation_goes_on_where_the_reply_ended(opened: Opened) -> None:
    reply = opened.run(PROMPT, max_new_tokens=20).tokens
    longer = [*PROMPT, *reply, 5, 6]
    again = opened.run(longer, max_new_tokens=4)
    assert again.cached == 64  # of 69 that were computed
    assert again.tokens == generate(tiny("llama"), longer, 4)


def test_replies_to_one_prompt_compute_it_once(opened: Opened) -> None:
    replies = opened.together([PROMPT] * 4, max_new_tokens=2)
    assert [reply.cached for reply in replies] == [0, 48, 48, 48]
    assert opened.starts()[:2] == [[0], [48, 48, 48]]
    assert {tuple(reply.tokens) for reply in replies} == {tuple(generate(tiny("llama"), PROMPT, 2))}


def test_another_scope_computes_everything_itself(opened: Opened) -> None:
    def cached(scope: bytes) -> int:
        callback = Collected()
        opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=1), callback, scope=scope)
        return callback.wait().cached

    assert [cached(scope) for scope in (b"a", b"b", b"a", b"", b"b")] == [0, 0, 48, 0, 48]


def test_a_prompt_without_a_whole_block_shares_nothing(opened: Opened) -> None:
    assert [opened.run([5] * BLOCK_TOKENS, max_new_tokens=1).cached for _ in range(2)] == [0, 0]


def test_an_end_by_cancellation_leaves_the_prefix_to_others(opened: Opened) -> None:
    callback = Collected(lambda _: True)
    opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=9), callback)
    callback.wait()
    assert opened.run(PROMPT, max_new_tokens=1).cached == 48


# Passes that fail


def test_what_a_failed_pass_computed_is_not_kept(opened: Opened) -> None:
    run = opened.runner.run

    def fail(rows: Sequence[SequenceChunk]) -> torch.Tensor:
        run(rows)
        if rows[0].key >= 0:  # not the probe, which tells that the model still works
            raise ValueError("a bad prompt")
        return torch.zeros(1, VOCABULARY)

    opened.runner.run = fail  # type: ignore[method-assign]
    with pytest.raises(GenerationFailed):
        opened.run(PROMPT, max_new_tokens=1)
    opened.runner.run = run  # type: ignore[method-assign]
    again = opened.run(PROMPT, max_new_tokens=4)
    assert (again.cached, again.tokens) == (0, generate(tiny("llama"), PROMPT, 4))


def test_a_sequence_without_finite_logits_takes_its_blocks_along() -> None:
    with Opened(tiny("llama"), chunk=32) as opened:
        run = opened.runner.run

        def spoil(rows: Sequence[SequenceChunk]) -> torch.Tensor:
            return run(rows) * (float("nan") if rows[0].end == len(PROMPT) else 1)

        opened.runner.run = spoil  # type: ignore[method-assign]
        with pytest.raises(GenerationFailed):
            opened.run(PROMPT, max_new_tokens=1)
        opened.runner.run = run  # type: ignore[method-assign]
        assert opened.run(PROMPT, max_new_tokens=1).cached == 0


# In company


def alike(seed: int) -> list[Ask]:
    """Returns requests that come at random passes and of which most begin alike; some leave."""
    chance = random.Random(seed)
    prefixes = [[chance.randrange(4, VOCABULARY) for _ in range(40)] for _ in range(2)]
    requests, at = [], 0
    for index in range(14):
        common = chance.choice([0, 16, 33, 40])
        own = [chance.randrange(4, VOCABULARY) for _ in range(chance.randint(1, 9))]
        sampling = SamplingParams(max_new_tokens=chance.randint(8, 35))
        gone = at + chance.randint(1, 9) if index in (2, 6, 9) else None
        requests.append(Ask(chance.choice(prefixes)[:common] + own, sampling, at, gone))
        at += chance.choice([0, 0, 1, 2, 4])
    return requests


class Failing:
    """A runner whose passes of several rows fail now and then, when all is computed."""

    def __init__(self, runner: BatchRunner, every: int = 7) -> None:
        self._runner = runner
        self._every = every
        self.holds, self.release, self.model = runner.holds, runner.release, runner.model
        self.truncate = runner.truncate
        self.count = self.failures = 0

    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        logits = self._runner.run(rows)
        self.count += 1
        if len(rows) > 1 and self.count % self._every == 0:
            self.failures += 1
            raise RuntimeError("now and then")
        return logits


@pytest.mark.parametrize(("name", "breakeven_tokens"), thinned(SHARING, [0, 64]))
def test_sequences_that_share_prefixes_get_the_tokens_that_they_get_alone(
    name: str, breakeven_tokens: int
) -> None:
    requests = alike(11)
    runner = batch_runner(tiny(name), kv_tokens=POOL)
    assert runner.cache.can_share
    failing = Failing(runner)
    company = Company(
        failing,
        requests,
        kv_tokens=POOL,
        cache=runner.cache,
        breakeven_tokens=breakeven_tokens,
    )
    replies = company.run()
    check(requests, replies, [generated(tiny(name), ask).tokens for ask in requests])
    assert company.preemptions > 0
    assert failing.failures > 0
    assert sum(reply.cached for reply in replies) >= 10 * BLOCK_TOKENS
    assert runner.cache.pages.free == POOL
    assert runner.cache.pages.shared == 0


# The plan


def pool_bytes(up: Up) -> int:
    """The bytes of the keys, values and states of all sequences."""
    layers = up.task.engine.runner.cache.layers
    tensors = (each for layer in layers for each in vars(layer).values())
    return sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_the_plan_and_the_cache_are_as_large_as_without_shared_prefixes(
    name: str, tmp_path: Path
) -> None:
    make = make_checkpoint if name in ARCHITECTURES else make_with_state
    folder = make(tmp_path / "model", name)
    placements, sizes = [], []
    for shares in (True, False):
        up = bring_up(folder, prefix_cache=shares, max_batch_size=4, max_concurrency=4)
        try:
            cached = [Collected.of(up.task.engine, PROMPT, max_new_tokens=2) for _ in range(2)]
            assert (cached[1].cached > 0) == shares
            placements.append(up.prepared.placement)
            sizes.append(pool_bytes(up))
        finally:
            up.task.engine.stop()
            assert up.task.engine.join(30)
    assert placements[0] == placements[1]
    assert sizes[0] == sizes[1] > 0
