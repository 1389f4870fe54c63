"""A draft model changes no reply, whatever it drafts, in any company, and if it fails."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from predictor.engine.generation.draft_model import DraftModel, WantedDraft
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner
from predictor.engine.generation.sampling_params import SamplingParams
from tests.checkpoints import VOCABULARY
from tests.engine.test_contamination import Ask, Company, check, generated, tiny
from tests.engine.test_engine import KV_TOKENS, PROMPT, RunningEngine, batch_runner, generate
from tests.engine.test_prefix_cache import POOL, alike
from tests.serving import metric

LIMITS = SchedulerLimits(
    KV_TOKENS, sequences=8, chunk=256, breakeven_tokens=256, draft_tokens=7, lookup_tokens=0
)


@functools.cache
def similar(name: str, noise: float) -> Any:
    """A model that often says the same as `tiny`, and often not."""
    import copy

    model = copy.deepcopy(tiny(name))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * parameter.std() * torch.randn_like(parameter)
    return model


class Failing:
    """A runner of which passes fail: each so manieth one."""

    def __init__(self, runner: BatchRunner, every: int) -> None:
        self._runner, self._every = runner, every
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        self.passes += 1
        logits = self._runner.run(rows)
        if self.passes % self._every == 0:
            raise RuntimeError("the draft model fails")
        return logits


def draft_model(runner: Any, *, tokens: int = 7, chunk: int = 64, length: int = 500) -> DraftModel:
    return DraftModel(runner, tokens=tokens, chunk=chunk, max_length=length, vocabulary=VOCABULARY)


def drafts_of(name: str, source: str = "model") -> tuple[float, float]:
    """How many draft tokens were verified, and accepted."""
    return (
        metric("predictor_draft_tokens_total", name, source=source),
        metric("predictor_draft_tokens_accepted_total", name, source=source),
    )


def test_a_model_that_is_its_own_draft_model_has_all_drafts_accepted() -> None:
    model = tiny("llama")
    own = draft_model(batch_runner(model))
    with RunningEngine(batch_runner(model), limits=LIMITS, draft_model=own) as opened:
        reply = opened.run(PROMPT, max_new_tokens=30)
    assert reply.tokens == generate(model, PROMPT, 30)
    drafted, accepted = drafts_of(opened.name)
    assert drafted == accepted >= 20


def test_drafts_are_those_that_the_draft_model_generates_after_any_acceptance() -> None:
    model = tiny("llama")
    runner = batch_runner(model)
    drafts = draft_model(runner, chunk=16)
    known_tokens = list(PROMPT)
    for right in (0, 3, 7, 1, 5):
        while not (draft := compute(drafts, known_tokens, 7)):
            pass  # it catches up with the prompt, a chunk at a time
        expected = generate(model, known_tokens, 8)
        assert draft == expected[:7]
        known_tokens += expected[:right] + [(expected[right] + 1) % VOCABULARY]
    drafts.end(0)
    assert runner.cache.free_pages == KV_TOKENS


def test_a_draft_whose_every_token_was_sampled_is_followed_by_another() -> None:
    # A pass that is planned anew may verify fewer drafts, and the token after them is one as well.
    drafts, known_tokens = draft_model(batch_runner(tiny("llama"))), list(PROMPT)
    while not (draft := compute(drafts, known_tokens, 7)):
        pass
    for count in (7, 3, 1):
        known_tokens += draft[:count]
        draft = compute(drafts, known_tokens, 7)
        assert draft == generate(tiny("llama"), known_tokens, 7)


def compute(drafts: DraftModel, known_tokens: list[int], count: int) -> list[int]:
    drafts.propose(0, known_tokens, count)
    return drafts.compute([WantedDraft(0, known_tokens, count)])[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-alibi"])
def test_sequences_in_company_get_the_tokens_of_generate_with_preemptions_and_failures(
    name: str,
) -> None:
    requests = alike(11)
    expected = [generated(tiny(name), ask).tokens for ask in requests]
    runner = batch_runner(tiny(name), kv_tokens=POOL)
    own = batch_runner(similar(name, 0.05), kv_tokens=POOL)
    company = Company(
        runner,
        requests,
        kv_tokens=POOL,
        cache=runner.cache,
        draft_model=draft_model(Failing(own, every=7)),
        breakeven_tokens=64,
        chunk=64,
        draft_tokens=7,
    )
    check(requests, company.run(), expected)
    assert company.preemptions > 0
    drafted, accepted = drafts_of(company.name)
    assert 0 < accepted < drafted
    assert own.cache.free_pages == POOL


def test_a_seed_gives_with_a_draft_model_in_company_what_it_gives_alone() -> None:
    requests = [
        Ask(ask.prompt, SamplingParams(20, temperature=1.0, top_p=0.9, seed=index), ask.at)
        for index, ask in enumerate(alike(3)[:6])
    ]
    with RunningEngine(batch_runner(tiny("llama")), limits=LIMITS) as opened:
        expected = [
            opened.run(ask.prompt, max_new_tokens=20, temperature=1.0, top_p=0.9, seed=index).tokens
            for index, ask in enumerate(requests)
        ]
    runner = batch_runner(tiny("llama"), kv_tokens=POOL)
    own = draft_model(batch_runner(similar("llama", 0.05)))
    company = Company(
        runner, requests, kv_tokens=POOL, draft_model=own, breakeven_tokens=64, draft_tokens=7
    )
    check(requests, company.run(), expected)
    assert drafts_of(company.name)[1] > 0


def test_a_draft_model_that_keeps_failing_fails_no_request_and_is_given_up() -> None:
    model = tiny("llama")
    failing = Failing(batch_runner(model), every=1)
    with RunningEngine(
        batch_runner(model), limits=LIMITS, draft_model=draft_model(failing)
    ) as opened:
        assert opened.run(PROMPT, max_new_tokens=20).tokens == generate(model, PROMPT, 20)
    assert failing.passes == 3
    assert drafts_of(opened.name) == (0, 0)


def test_a_draft_model_without_room_or_positions_drafts_nothing() -> None:
    model = tiny("llama")
    for own in (
        draft_model(batch_runner(model, kv_tokens=8)),
        draft_model(batch_runner(model), length=len(PROMPT)),
    ):
        with RunningEngine(batch_runner(model), limits=LIMITS, draft_model=own) as opened:
            assert opened.run(PROMPT, max_new_tokens=8).tokens == generate(model, PROMPT, 8)
        assert drafts_of(opened.name) == (0, 0)
