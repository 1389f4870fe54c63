"""Drafts change no reply, whatever they are: right, wrong, or right up to some token."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MambaConfig

from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.grammar import Vocabulary
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.prompt_lookup import PromptLookup
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import SamplingParams, Token
from predictor.engine.generation.token_mask import TokenMask
from predictor.engine.generation.verification import sample_rows
from predictor.errors import GenerationFailed
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.conftest import Checkpoints
from tests.engine.test_contamination import ARCHITECTURES, Ask, Company, check, generated, tiny
from tests.engine.test_engine import KV_TOKENS, PROMPT, RunningEngine, Wrapped, batch_runner
from tests.engine.test_prefix_cache import POOL, Failing, alike
from tests.engine.test_windows import alone as alone_in_windows
from tests.engine.test_windows import batch_runner as window_runner
from tests.engine.test_windows import company_of
from tests.serving import Collected, blocks_on_disk, bring_up, metric

_numbers = itertools.count()

LIMITS = SchedulerLimits(KV_TOKENS, sequences=8, chunk=256, breakeven_tokens=256, draft_tokens=7)


class Guesses:
    """Drafts of which some are right up to some token, in place of those of prompt lookup."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, wrong: float = 0.15) -> None:
        self.replies: list[list[int]] = []
        self.chance = random.Random(5)
        self.wrong = wrong
        monkeypatch.setattr(PromptLookup, "rate", 0.9)
        guesses = self

        def propose(lookup: PromptLookup, tokens: Sequence[int], most: int) -> Sequence[int]:
            lookup.draft = guesses.draft(list(tokens), most)
            return lookup.draft

        monkeypatch.setattr(PromptLookup, "propose", propose)

    def draft(self, tokens: list[int], most: int) -> list[int]:
        replies = [reply for reply in self.replies if reply[: len(tokens)] == tokens]
        reply = self.chance.choice(replies or [tokens])
        right = reply[len(tokens) :][:most]
        return [
            self.chance.randrange(VOCABULARY) if self.chance.random() < self.wrong else token
            for token in right
        ]

    def know(self, prompt: Sequence[int], reply: Sequence[int]) -> None:
        self.replies.append([*prompt, *reply])


@pytest.fixture
def guesses(monkeypatch: pytest.MonkeyPatch) -> Guesses:
    return Guesses(monkeypatch)


def drafts_of(company: Company) -> tuple[int, int]:
    """How many drafts there were, and most rows of a pass that had some."""
    passes = [[row.drafts for row in rows] for rows in company.runner.passes]
    rows = [sum(count > 0 for count in drafts) for drafts in passes]
    return sum(map(sum, passes)), max(rows)


# In company


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sequences_with_drafts_prefixes_and_failures_get_the_tokens_of_generate(
    name: str, guesses: Guesses
) -> None:
    requests = alike(11)
    expected = [generated(tiny(name), ask).tokens for ask in requests]
    for ask, tokens in zip(requests, expected, strict=True):
        guesses.know(ask.prompt, tokens)
    runner = batch_runner(tiny(name), kv_tokens=POOL)
    shares = runner.cache.can_share
    failing = Failing(runner, every=3) if shares else runner
    company = Company(
        failing,
        requests,
        kv_tokens=POOL,
        cache=runner.cache if shares else None,
        breakeven_tokens=64,
        chunk=64,
        draft_tokens=7,
    )
    replies = company.run()
    check(requests, replies, expected)
    assert company.preemptions > 0
    drafts, _ = drafts_of(company)
    assert drafts > 30
    if isinstance(failing, Failing):
        assert failing.failures > 0
        assert sum(reply.cached for reply in replies) >= 5 * BLOCK_TOKENS
    assert runner.cache.pages.free == POOL
    assert runner.cache.pages.shared == 0


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_oss"])
def test_rejected_drafts_leave_windows_as_they_were(name: str, guesses: Guesses) -> None:
    runner, expected = window_runner(name), [one.tokens for one in alone_in_windows(name)]
    company = company_of(runner, breakeven_tokens=64, draft_tokens=5)
    for ask, tokens in zip(company.requests, expected, strict=True):
        guesses.know(ask.prompt, tokens)
    check(company.requests, company.run(), expected)
    drafts, rows = drafts_of(company)
    assert drafts > 30
    assert rows > 1
    free = runner.cache.free_window_pages
    assert free == window_runner(name).cache.free_window_pages


def test_a_seed_gives_with_drafts_in_company_what_it_gives_alone(guesses: Guesses) -> None:
    requests = [
        Ask(ask.prompt, SamplingParams(30, temperature=1.0, top_p=0.9, seed=index), ask.at)
        for index, ask in enumerate(alike(3)[:8])
    ]
    runner = batch_runner(tiny("llama"), kv_tokens=POOL)
    with RunningEngine(runner, limits=SchedulerLimits(POOL, sequences=1, chunk=64)) as opened:
        expected = []
        for ask in requests:
            callback = Collected()
            opened.engine.submit(ask.prompt, ask.sampling, callback)
            expected.append(callback.wait().tokens)
            guesses.know(ask.prompt, expected[-1])
    company = Company(
        runner, requests, kv_tokens=POOL, breakeven_tokens=64, chunk=64, draft_tokens=7
    )
    check(requests, company.run(), expected)
    assert drafts_of(company)[0] > 30
    assert company.preemptions > 0


# Every way to sample


PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "logprobs": {"logprobs": 3},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words": ((20, 30), (17,))},
    "seed": {"temperature": 0.8, "top_k": 20, "seed": 3, "logprobs": 0},
    "seed and penalties": {"temperature": 1.2, "seed": 4, "frequency_penalty": 1.0},
}


def run(params: dict[str, Any], *, draft_tokens: int, ends: Sequence[int] = ()) -> Collected:
    runner = batch_runner(tiny("llama"))
    limits = SchedulerLimits(KV_TOKENS, 8, 256, breakeven_tokens=256, draft_tokens=draft_tokens)
    with RunningEngine(runner, limits=limits, eos_token_ids=ends) as opened:
        reply = opened.run(PROMPT, **{"max_new_tokens": 30} | params)
    assert runner.cache.pages.free == KV_TOKENS
    return reply


@pytest.mark.parametrize("name", PARAMS)
def test_a_reply_with_drafts_is_the_reply_without(name: str, guesses: Guesses) -> None:
    expected = run(PARAMS[name], draft_tokens=0)
    guesses.know(PROMPT, expected.tokens)
    reply = run(PARAMS[name], draft_tokens=7)
    assert reply.tokens == expected.tokens
    for token, other in zip(reply.scored, expected.scored, strict=True):
        assert (token.logprob or 0) == pytest.approx(other.logprob or 0, abs=1e-4)
        assert [best for best, _ in token.top] == [best for best, _ in other.top]


def test_a_reply_ends_within_a_draft_as_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = run({}, draft_tokens=0).tokens
    end = next(token for token in reply[5:] if reply.count(token) == 1)
    at = reply.index(end)
    Guesses(monkeypatch, wrong=0).know(PROMPT, reply)
    ended = run({}, draft_tokens=7, ends=[end])
    assert (ended.tokens, ended.outcome) == (reply[: at + 1], "eos_token")
    longer = run({"min_new_tokens": at + 3}, draft_tokens=0, ends=[end])
    assert run({"min_new_tokens": at + 3}, draft_tokens=7, ends=[end]).tokens == longer.tokens
    for count in (1, 2, 8, 9):
        short = run({"max_new_tokens": count}, draft_tokens=7)
        assert (short.tokens, short.outcome) == (reply[:count], "length")


def test_a_callback_that_ends_its_sequence_hears_nothing_of_later_drafts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reply = run({}, draft_tokens=0).tokens
    Guesses(monkeypatch, wrong=0).know(PROMPT, reply)
    runner = batch_runner(tiny("llama"))
    with RunningEngine(runner, limits=LIMITS) as opened:
        callback = Collected(lambda _: len(callback.tokens) == 4)
        opened.engine.submit(PROMPT, SamplingParams(30), callback)
        assert callback.wait().tokens == reply[:4]
    assert runner.cache.pages.free == KV_TOKENS


def test_right_drafts_take_fewer_passes_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = run({"max_new_tokens": 33}, draft_tokens=0).tokens
    Guesses(monkeypatch, wrong=0).know(PROMPT, reply)
    runner = Wrapped(batch_runner(tiny("llama")), lambda _: None)
    with RunningEngine(runner, limits=LIMITS) as opened:
        assert opened.run(PROMPT, max_new_tokens=33).tokens == reply
        names = ("predictor_draft_tokens_total", "predictor_draft_tokens_accepted_total")
        counts = [metric(name, opened.name, source="lookup") for name in names]
        counts.append(metric("predictor_generated_tokens_total", opened.name))
    # The prompt gives one token, and four passes give eight each.
    assert len(runner.passes) == 5
    assert counts == [28, 28, 33]


def test_a_grammar_is_followed_through_drafts(guesses: Guesses) -> None:
    tokens = tuple(bytes([index % 256]) for index in range(VOCABULARY))
    grammar = '%llguidance {"no_forcing": true}\nstart: "(" /[a-z]{20}/ ")"'
    replies = []
    for draft_tokens in (0, 7):
        runner = batch_runner(tiny("llama"))
        limits = SchedulerLimits(KV_TOKENS, 8, 256, breakeven_tokens=256, draft_tokens=draft_tokens)
        with RunningEngine(runner, limits=limits) as opened:
            opened.engine.use_vocabulary(Vocabulary(tokens, ()))
            params = {"grammar": grammar, "max_new_tokens": 40}
            replies.append(opened.run(PROMPT, **params).tokens)
            guesses.know(PROMPT, [*replies[-1], 1, 2, 3, 4, 5, 6, 7])
            drafted = metric("predictor_draft_tokens_total", opened.name, source="lookup")
    assert replies[0] == replies[1]
    assert len(replies[0]) == 22
    assert drafted > 5


def test_text_that_a_grammar_forces_is_drafted() -> None:
    tokens = tuple(bytes([index % 256]) for index in range(VOCABULARY))
    grammar = '%llguidance {"no_forcing": true}\nstart: "(width: " /[0-9]/ ", height: " /[0-9]/ ")"'
    replies, passes = [], []
    for draft_tokens in (0, 7):
        runner = Wrapped(batch_runner(tiny("llama")), lambda _: None)
        limits = SchedulerLimits(KV_TOKENS, 8, 256, breakeven_tokens=256, draft_tokens=draft_tokens)
        with RunningEngine(runner, limits=limits) as opened:
            opened.engine.use_vocabulary(Vocabulary(tokens, ()))
            replies.append(opened.run([5, 6, 7], grammar=grammar, max_new_tokens=40).tokens)
            passes.append(len(runner.passes))
    assert replies[0] == replies[1]
    assert bytes(token % 256 for token in replies[0]).startswith(b"(width: ")
    assert passes == [len(replies[0]), passes[1]]
    assert passes[1] <= len(replies[0]) / 2


@pytest.mark.parametrize("look", ["forced", "count_allowed"])
def test_a_grammar_that_cannot_look_ahead_costs_its_own_sequence_its_drafts_alone(
    look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        calls.append(0)
        raise ValueError("the library's own")

    calls: list[int] = []
    grammar = '%llguidance {"no_forcing": true}\nstart: "(width: " /[0-9]/ ", height: " /[0-9]/ ")"'
    if look == "count_allowed":
        grammar = '%llguidance {"no_forcing": true}\nstart: /[a-c]{30}/'
    monkeypatch.setattr(TokenMask, look, fail)
    runner = Wrapped(batch_runner(tiny("llama")), lambda _: None)
    with RunningEngine(runner, limits=LIMITS) as opened:
        opened.engine.use_vocabulary(
            Vocabulary(tuple(bytes([index % 256]) for index in range(VOCABULARY)), ())
        )
        neighbour = Collected()
        opened.engine.submit([9] * 20, SamplingParams(60), neighbour)
        confined = opened.run([5, 6, 7], grammar=grammar, max_new_tokens=40)
        assert len(neighbour.wait().tokens) == 60
        assert len(opened.run(PROMPT, max_new_tokens=3).tokens) == 3
    assert confined.outcome == "eos_token"
    assert len(calls) == 1


def test_logits_that_are_not_finite_after_a_draft_fail_the_sequence_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reply = run({}, draft_tokens=0).tokens
    Guesses(monkeypatch, wrong=0).know(PROMPT, reply)
    runner = batch_runner(tiny("llama"))
    compute = runner.run

    def spoil(rows: Sequence[SequenceChunk]) -> torch.Tensor:
        logits = compute(rows).clone()
        if rows[0].drafts:
            logits[-3] = float("nan")  # of eight: five are sampled before
        return logits

    runner.run = spoil  # type: ignore[method-assign]
    with RunningEngine(runner, limits=LIMITS) as opened:
        callback = Collected()
        opened.engine.submit(PROMPT, SamplingParams(30), callback)
        with pytest.raises(GenerationFailed):
            callback.wait()
    assert callback.tokens == reply[:6]
    assert runner.cache.pages.free == KV_TOKENS


# The distribution


@pytest.mark.parametrize(
    "params",
    [{}, {"top_p": 0.8}, {"temperature": 0.5, "top_k": 3}],
    ids=["whole", "top-p", "top-k"],
)
def test_sampled_tokens_have_the_distribution_of_the_model(params: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits, rows = torch.randn(3, 6), 10_000
    draft = tuple(logits[:2].argmax(dim=-1).tolist())
    chunks = [SequenceChunk(key, 5, [1, *draft], drafts=2) for key in range(rows)]
    sampling = SamplingParams(9, **{"temperature": 1.0} | params)
    samplers = [Sampler(sampling, [1]) for _ in range(rows)]
    sampled = sample_rows(chunks, samplers, logits.repeat(rows, 1), BatchSampler())
    tokens = [[token.id for token in row if isinstance(token, Token)] for row in sampled]
    for position in range(3):
        drawn = [row[position] for row in tokens if len(row) > position]
        assert all(row[:position] == list(draft[:position]) for row in tokens if row[position:])
        alone = [Sampler(sampling, [1]) for _ in range(rows)]
        plain = BatchSampler().sample(alone, logits[position].repeat(rows, 1))
        expected = [sum(token == Token(number) for token in plain) / rows for number in range(6)]
        for number in range(6):
            # Four standard deviations of the difference of two frequencies.
            error = (
                4 * (expected[number] * (1 - expected[number]) * (1 / len(drawn) + 1 / rows)) ** 0.5
            )
            assert drawn.count(number) / len(drawn) == pytest.approx(
                expected[number], abs=error + 1e-3
            )


# Served


REPEATING = [7, 8, 9, 10, 11, 12] * 5


def served(folder: Path, **flags: Any) -> tuple[int, list[int], float]:
    """Return the most drafts, the tokens of a reply, and how many drafts it had."""
    name = f"served-{next(_numbers)}"
    up = bring_up(folder, model_name=name, **flags)
    try:
        tokens = up.tokens(REPEATING, max_new_tokens=40, ignore_eos=True)
        drafted = metric("predictor_draft_tokens_total", name, source="lookup")
        return up.task.engine.limits.draft_tokens, tokens, drafted
    finally:
        up.task.engine.stop()
        assert up.task.engine.join(30)


@pytest.mark.parametrize("placed", ["resident", "on disk"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
def test_a_server_drafts_unless_it_is_turned_off(
    checkpoints: Checkpoints, tmp_path: Path, name: str, placed: str
) -> None:
    folder = checkpoints(name)
    flags: dict[str, Any] = {"offload_folder": str(tmp_path)}
    if placed == "on disk":
        flags["device_map"] = blocks_on_disk(folder)
    none, expected, nothing = served(folder, prompt_lookup_num_tokens=0, **flags)
    assert (none, nothing) == (0, 0)
    most, tokens, drafted = served(folder, **flags)
    assert (most, tokens) == (15, expected)
    assert drafted > 0 or placed == "resident"  # where a token may cost as much as a pass


def test_a_model_that_cannot_go_back_has_no_drafts(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=3)
    folder = make_checkpoint(tmp_path / "model", "mamba", config=config)
    assert served(folder)[0] == 0
