"""The generation engine: how sequences end, and that a failure fails its own sequence alone."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.draft_model import DraftModel
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.kv_accounting import PADDING_PAGES
from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.engine.generation.sampling_params import SamplingParams, Token
from predictor.errors import EngineBroken, GenerationFailed
from predictor.metrics import EngineMetrics
from predictor.private.cache_layers import cache_layers
from tests.conftest import Checkpoints
from tests.serving import Collected, metric

PROMPT = list(range(10, 60))
PROMPTS = [list(range(start, start + 20)) for start in (10, 50, 90, 130)]
KV_TOKENS, LONGEST = 600, 128

_names = (f"test-{number}" for number in itertools.count())


def batch_runner(
    model: Any, *, kv_tokens: int = KV_TOKENS, adapters: LoadedAdapters | None = None
) -> BatchRunner:
    return BatchRunner(
        model,
        device=torch.device("cpu"),
        layers=cache_layers(model),
        pages=kv_tokens + PADDING_PAGES,
        max_length=LONGEST,
        slots=8,
        window_pages=kv_tokens + PADDING_PAGES,
        adapters=adapters,
    )


class RunningEngine:
    """An engine in a test, stopped at its end."""

    def __init__(
        self,
        runner: Runner,
        *,
        eos_token_ids: Sequence[int] = (),
        limits: SchedulerLimits | None = None,
        on_broken: Any = None,
        cache: PagedKVCache | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        self.name = next(_names)
        self.engine = Engine(
            runner,
            limits or SchedulerLimits(KV_TOKENS, sequences=8, chunk=256, breakeven_tokens=256),
            eos_token_ids=frozenset(eos_token_ids),
            metrics=EngineMetrics(self.name),
            on_broken=on_broken,
            cache=cache,
            draft_model=draft_model,
        )

    def __enter__(self) -> RunningEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()
        assert self.engine.join(30)

    @property
    def counts(self) -> tuple[float, float, float]:
        """Running, waiting and cached, as the metrics say."""
        names = ("sequences_running", "sequences_waiting", "kv_tokens_used")
        running, waiting, cached = (metric(f"predictor_{name}", self.name) for name in names)
        return running, waiting, cached

    def run(self, prompt: list[int], **params: Any) -> Collected:
        return Collected.of(self.engine, prompt, **params)

    def together(self, prompts: Sequence[list[int]], callbacks: Any = None, **params: Any) -> Any:
        """Submits prompts while the engine waits, so that all come in at one step; waits."""
        callbacks = callbacks or [Collected() for _ in prompts]
        with self.held():
            for prompt, callback in zip(prompts, callbacks, strict=True):
                self.engine.submit(prompt, SamplingParams(**params), callback)
        for callback in callbacks:
            assert callback.ended.wait(60)
        return callbacks

    def held(self) -> Held:
        return Held(self.engine)


class Held:
    """Keeps the engine's thread waiting."""

    def __init__(self, engine: Engine) -> None:
        self._go = threading.Event()
        self._engine = engine

    def __enter__(self) -> None:
        self._engine.call(lambda: assert_(self._go.wait(60)))

    def __exit__(self, *_: object) -> None:
        self._go.set()


def assert_(happened: bool) -> None:
    assert happened


class Wrapped:
    """A runner that calls a function before each forward pass, and records its rows."""

    def __init__(self, runner: Runner, before: Callable[[Sequence[SequenceChunk]], None]) -> None:
        self._runner = runner
        self.before = before
        self.passes: list[list[SequenceChunk]] = []

    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        self.passes.append(list(rows))
        self.before(rows)
        return self._runner.run(rows)

    def holds(self, key: int, /) -> bool:
        return self._runner.holds(key)

    def truncate(self, key: int, end: int) -> None:
        self._runner.truncate(key, end)

    def release(self, key: int) -> None:
        self._runner.release(key)

    @property
    def model(self) -> Any:
        return self._runner.model

    @property
    def most_rows(self) -> int:
        return max(len(rows) for rows in self.passes)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    checkpoints: Checkpoints = request.getfixturevalue("checkpoints")
    return AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()


@pytest.fixture(scope="module")
def greedy(model: Any) -> list[list[int]]:
    """Twelve tokens after each of the prompts, by transformers."""
    return [generate(model, prompt, 12) for prompt in PROMPTS]


@pytest.fixture
def opened(model: Any) -> Iterator[RunningEngine]:
    with RunningEngine(batch_runner(model)) as running:
        yield running


def generate(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of transformers' own generate, which no token ends."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=3,
    )
    return list(output[0, len(prompt) :].tolist())


# One sequence


@pytest.mark.parametrize("chunk", [1, 7, 49, 50])
def test_the_size_of_prefill_chunks_changes_no_token(model: Any, chunk: int) -> None:
    with RunningEngine(batch_runner(model), limits=SchedulerLimits(KV_TOKENS, 4, chunk)) as opened:
        assert opened.run(PROMPT, max_new_tokens=8).tokens == generate(model, PROMPT, 8)


def test_a_seed_repeats_a_sampled_reply_and_leaves_torchs_generator_as_it_was(
    opened: RunningEngine,
) -> None:
    params = {"max_new_tokens": 16, "temperature": 2.0, "seed": 11}
    before = torch.get_rng_state()
    first = opened.run(PROMPT, **params).tokens
    assert torch.equal(torch.get_rng_state(), before)
    opened.run(PROMPT, max_new_tokens=4, temperature=2.0)
    assert opened.run(PROMPT, **params).tokens == first
    assert opened.run(PROMPT, **params | {"seed": 12}).tokens != first


def test_replies_without_a_seed_differ(opened: RunningEngine) -> None:
    replies = [opened.run(PROMPT, max_new_tokens=16, temperature=5.0).tokens for _ in range(4)]
    assert len(set(map(tuple, replies))) > 1


def test_greedy_inherits_no_sampling_from_the_models_own_config(checkpoints: Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    expected = generate(model, PROMPT, 12)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 9.0
    model.generation_config.repetition_penalty = 5.0
    with RunningEngine(batch_runner(model)) as opened:
        for _ in range(3):
            assert opened.run(PROMPT, max_new_tokens=12).tokens == expected


def test_top_k_of_one_is_greedy_and_a_penalty_changes_the_reply(opened: RunningEngine) -> None:
    greedy = opened.run(PROMPT, max_new_tokens=12).tokens
    hot = {"max_new_tokens": 12, "temperature": 3.0}
    assert opened.run(PROMPT, **hot, top_k=1).tokens == greedy
    assert opened.run(PROMPT, **hot, top_p=1e-6).tokens == greedy
    assert opened.run(PROMPT, max_new_tokens=12, repetition_penalty=50.0).tokens != greedy


def test_log_probabilities_come_with_each_token(opened: RunningEngine) -> None:
    reply = opened.run(PROMPT, max_new_tokens=6, logprobs=3)
    assert reply.tokens == opened.run(PROMPT, max_new_tokens=6).tokens
    for token in reply.scored:
        assert token.top[0] == (token.id, token.logprob)  # greedy takes the most probable
        assert len(token.top) == 3


# How sequences end


def test_tokens_that_run_out_end_a_sequence(opened: RunningEngine) -> None:
    for count in (1, 4):
        reply = opened.run(PROMPT, max_new_tokens=count)
        assert (len(reply.tokens), reply.outcome) == (count, "length")


def test_an_end_of_sequence_token_ends_a_sequence_where_transformers_ends_it(model: Any) -> None:
    tokens = generate(model, PROMPT, 12)
    end = tokens[5]
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=[end, 2],
        pad_token_id=3,
    )[0, len(PROMPT) :].tolist()
    with RunningEngine(batch_runner(model), eos_token_ids=[end, 2]) as opened:
        reply = opened.run(PROMPT, max_new_tokens=12)
        assert reply.tokens == expected == tokens[: tokens.index(end) + 1]
        assert reply.outcome == "eos_token"
        # Also where it is the last that was allowed.
        last = opened.run(PROMPT, max_new_tokens=len(expected))
        assert (last.tokens, last.outcome) == (expected, "eos_token")


def test_a_callback_ends_its_sequence(opened: RunningEngine) -> None:
    counted = itertools.count(1)
    callback = Collected(lambda _: next(counted) == 3)
    opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=9), callback)
    assert callback.wait().outcome == "stop_sequence"
    assert len(callback.tokens) == 3


def test_a_sequence_that_ended_leaves_nothing_behind(opened: RunningEngine) -> None:
    callbacks = opened.together(PROMPTS, max_new_tokens=5)
    assert {callback.outcome for callback in callbacks} == {"length"}
    opened.engine.stop()
    assert opened.engine.join(30)
    assert opened.counts == (0, 0, 0)
    kept = [weakref.ref(callback) for callback in callbacks]
    del callbacks
    assert [reference() for reference in kept] == [None] * len(PROMPTS)
    assert isinstance(opened.engine.runner, BatchRunner)
    assert opened.engine.runner.cache.free_pages == KV_TOKENS


# Cancelling


def test_a_cancelled_sequence_frees_its_place_and_its_callback_is_not_called_again(
    opened: RunningEngine,
) -> None:
    fifth = threading.Event()
    counted = itertools.count(1)
    callback = Collected(lambda _: next(counted) == 5 and fifth.set())
    key = opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=70), callback)
    assert fifth.wait(60)
    opened.engine.cancel(key)
    opened.run(PROMPT, max_new_tokens=1)  # comes in after the cancel
    heard = len(callback.tokens)
    opened.run(PROMPT, max_new_tokens=3)
    assert 5 <= len(callback.tokens) == heard < 70
    assert callback.outcome is None
    opened.engine.stop()
    assert opened.engine.join(30)
    assert opened.counts == (0, 0, 0)


def test_sequences_are_cancelled_before_they_run_and_after_they_ended(model: Any) -> None:
    with RunningEngine(batch_runner(model), limits=SchedulerLimits(KV_TOKENS, 1, 64)) as opened:
        first, second, third = Collected(), Collected(), Collected()
        with opened.held():
            opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=8), first)
            key = opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=8), second)
            opened.engine.cancel(key)
            last = opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=8), third)
        assert first.wait().tokens == third.wait().tokens
        assert (second.tokens, second.outcome) == ([], None)
        opened.engine.cancel(last)
        opened.engine.cancel(10**6)
        assert opened.run(PROMPT, max_new_tokens=8).tokens == first.tokens


def test_a_cancel_in_a_crowd_changes_nobody_elses_tokens(
    opened: RunningEngine, greedy: list[list[int]]
) -> None:
    counted = itertools.count(1)
    gone = Collected(lambda _: next(counted) == 4 and opened.engine.cancel(gone_key))
    others = [Collected() for _ in PROMPTS[1:]]
    with opened.held():
        gone_key = opened.engine.submit(PROMPTS[0], SamplingParams(max_new_tokens=12), gone)
        for prompt, callback in zip(PROMPTS[1:], others, strict=True):
            opened.engine.submit(prompt, SamplingParams(max_new_tokens=12), callback)
    assert [callback.wait().tokens for callback in others] == greedy[1:]
    assert gone.tokens == greedy[0][:4]
    assert gone.outcome is None


# Fairness between requests


def test_a_lone_sequence_runs_before_the_rest_of_a_list(model: Any) -> None:
    order: list[str] = []

    def noting(name: str) -> Collected:
        return Collected(lambda _: order.append(name))

    with RunningEngine(batch_runner(model), limits=SchedulerLimits(KV_TOKENS, 1, 64)) as opened:
        callbacks = [noting("list") for _ in range(6)] + [noting("lone")]
        with opened.held():
            request = opened.engine.new_request()
            for callback in callbacks[:-1]:
                params = SamplingParams(max_new_tokens=1)
                opened.engine.submit(PROMPT, params, callback, request=request)
            opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=1), callbacks[-1])
        for callback in callbacks:
            callback.wait()
    assert order == ["lone", *["list"] * 6]


# Failures of one


@pytest.mark.parametrize("are_long", [True, False], ids=["long passes", "short passes"])
def test_requests_that_come_one_after_the_other_begin_together_if_passes_are_long(
    model: Any, *, are_long: bool
) -> None:
    runner = Wrapped(batch_runner(model), lambda rows: None)
    with RunningEngine(runner) as opened:
        policy: Any = opened.engine._policy
        policy._gathering.note_pass(50.0 if are_long else 0.001)
        waiting = [Collected(), Collected()]
        for collected in waiting:
            opened.engine.submit(PROMPTS[0], SamplingParams(max_new_tokens=1), collected)
            time.sleep(0.05)
        for collected in waiting:
            collected.wait()
    assert [len(rows) for rows in runner.passes] == ([2] if are_long else [1, 1])


def poisoned(model: Any, token: int) -> Wrapped:
    """A runner that fails where a token is in any row."""

    def fail(rows: Sequence[SequenceChunk]) -> None:
        if any(token in row.tokens for row in rows):
            raise RuntimeError("poison")

    return Wrapped(batch_runner(model), fail)


@pytest.mark.parametrize("failing", range(4))
def test_a_prompt_that_fails_fails_alone(model: Any, greedy: Any, failing: int) -> None:
    runner = poisoned(model, 200)
    assert not any(200 in tokens for tokens in greedy)
    prompts = list(PROMPTS)
    prompts[failing] = [200] * 20
    with RunningEngine(runner) as opened:
        replies = opened.together(prompts, max_new_tokens=12)
        assert len(runner.passes[0]) == 4  # they were in one pass
        assert isinstance(replies[failing].outcome, GenerationFailed)
        assert "poison" not in str(replies[failing].outcome)
        for index in set(range(4)) - {failing}:
            assert (replies[index].tokens, replies[index].outcome) == (greedy[index], "length")
        assert opened.run(PROMPTS[0], max_new_tokens=12).tokens == greedy[0]


def test_a_sequence_that_fails_later_keeps_its_earlier_tokens(model: Any, greedy: Any) -> None:
    # A token that one of the replies has and no other, nor any prompt.
    others = {token for tokens in (*greedy[1:], *PROMPTS) for token in tokens}
    poison = next(token for token in greedy[0][1:-1] if token not in others)
    with RunningEngine(poisoned(model, poison)) as opened:
        replies = opened.together(PROMPTS, max_new_tokens=12)
        assert replies[0].tokens == greedy[0][: greedy[0].index(poison) + 1]
        assert isinstance(replies[0].outcome, GenerationFailed)
        assert [callback.tokens for callback in replies[1:]] == greedy[1:]


def test_one_that_fails_by_itself_leaves_the_engine_whole(model: Any, greedy: Any) -> None:
    broken: list[EngineBroken] = []
    with RunningEngine(poisoned(model, 200), on_broken=broken.append) as opened:
        for _ in range(3):
            with pytest.raises(GenerationFailed):
                opened.run([200], max_new_tokens=3)
        assert opened.run(PROMPTS[1], max_new_tokens=12).tokens == greedy[1]
        assert not broken


def test_a_token_that_the_model_does_not_know_fails_its_sequence_alone(
    model: Any, greedy: Any
) -> None:
    with RunningEngine(batch_runner(model)) as opened:
        replies = opened.together([PROMPTS[0], [10**6] * 20], max_new_tokens=12)
        assert replies[0].tokens == greedy[0]
        assert isinstance(replies[1].outcome, GenerationFailed)
        assert "index" not in str(replies[1].outcome)


def test_logits_that_are_no_numbers_fail_their_sequence_alone(model: Any, greedy: Any) -> None:
    inner = batch_runner(model)

    class Spoilt(Wrapped):
        def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
            logits = inner.run(rows).clone()
            for index, row in enumerate(rows):
                if row.start == 0 and row.tokens[0] == PROMPTS[2][0]:
                    logits[index, 5] = float("nan")
            return logits

    for params in ({}, {"logprobs": 1}):
        with RunningEngine(Spoilt(inner, lambda _: None)) as opened:
            replies = opened.together(PROMPTS, max_new_tokens=12, **params)
            assert isinstance(replies[2].outcome, GenerationFailed)
            for index in (0, 1, 3):
                assert replies[index].tokens == greedy[index]


def test_sampling_that_fails_fails_its_sequence_alone(model: Any, greedy: Any) -> None:
    with RunningEngine(batch_runner(model)) as opened:
        bad, good = Collected(), Collected()
        with opened.held():
            params = SamplingParams(max_new_tokens=12, logit_bias={10**6: 1.0})
            opened.engine.submit(PROMPTS[0], params, bad)
            opened.engine.submit(PROMPTS[1], SamplingParams(max_new_tokens=12), good)
        assert good.wait().tokens == greedy[1]
        with pytest.raises(GenerationFailed):
            bad.wait()


def test_a_callback_that_raises_fails_alone(opened: RunningEngine, greedy: Any) -> None:
    counted = itertools.count(1)

    def fail(_: Token) -> bool:
        if next(counted) == 3:
            raise ValueError("of the callback")
        return False

    callbacks = [Collected(), Collected(fail), Collected(), Collected()]
    opened.together(PROMPTS, callbacks, max_new_tokens=12)
    assert isinstance(callbacks[1].outcome, GenerationFailed)
    assert callbacks[1].tokens == greedy[1][:3]
    for index in (0, 2, 3):
        assert (callbacks[index].tokens, callbacks[index].outcome) == (greedy[index], "length")


class BadEnd(Collected):
    """A callback that fails at its end."""

    def on_finish(self, outcome: Any) -> None:
        super().on_finish(outcome)
        raise ValueError("of the callback")


def test_a_callback_that_raises_at_its_end_harms_nobody(opened: RunningEngine, greedy: Any) -> None:
    callbacks = [Collected(), BadEnd(), Collected(), BadEnd()]
    opened.together(PROMPTS, callbacks, max_new_tokens=12)
    assert [callback.tokens for callback in callbacks] == greedy
    assert opened.run(PROMPTS[0], max_new_tokens=12).tokens == greedy[0]


class NoReply(Collected):
    """A callback that cannot end with a reply, as where a tokenizer fails on it."""

    def on_finish(self, outcome: Any) -> None:
        if not isinstance(outcome, Exception):
            raise ValueError("of the tokenizer")
        super().on_finish(outcome)


def test_a_reply_that_cannot_be_made_ends_as_a_failure(opened: RunningEngine) -> None:
    callback = NoReply()
    opened.together([PROMPTS[0]], [callback], max_new_tokens=3)
    assert isinstance(callback.outcome, GenerationFailed)


# Memory


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_pass_that_needs_too_much_memory_is_run_again_in_halves(
    model: Any, greedy: Any, most: int
) -> None:
    def fail(rows: Sequence[SequenceChunk]) -> None:
        if len(rows) > most:
            raise torch.OutOfMemoryError("no room")

    runner = Wrapped(batch_runner(model), fail)
    with RunningEngine(runner) as opened:
        replies = opened.together(PROMPTS, max_new_tokens=12)
        assert runner.most_rows == 4
        assert [callback.tokens for callback in replies] == greedy
        assert {callback.outcome for callback in replies} == {"length"}


def test_memory_of_a_failed_pass_is_released_before_its_halves_run(model: Any) -> None:
    """Else the halves find as little memory as the whole did."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def fail(rows: Sequence[SequenceChunk]) -> None:
        alive.append(sum(ref() is not None for ref in held))
        if len(rows) > 1:
            activations = torch.zeros(10)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no room")

    with RunningEngine(Wrapped(batch_runner(model), fail)) as opened:
        opened.together(PROMPTS, max_new_tokens=1)
    assert len(held) == 3  # of four rows, and twice of two
    assert set(alive) == {0}


# A broken engine


def always_failing(model: Any) -> Wrapped:
    def fail(_: Sequence[SequenceChunk]) -> None:
        raise RuntimeError("device-side assert")

    return Wrapped(batch_runner(model), fail)


def test_an_engine_whose_model_always_fails_is_broken_for_good(model: Any) -> None:
    broken: list[EngineBroken] = []
    has_ended = threading.Event()

    def on_broken(error: EngineBroken) -> None:
        broken.append(error)
        has_ended.set()

    limits = SchedulerLimits(KV_TOKENS, sequences=2, chunk=64)  # so that two wait
    with RunningEngine(always_failing(model), limits=limits, on_broken=on_broken) as opened:
        replies = opened.together(PROMPTS, max_new_tokens=5)
        assert has_ended.wait(30)
        assert opened.engine.join(30)
        assert all(isinstance(callback.outcome, Exception) for callback in replies)
        assert [type(callback.outcome) for callback in replies[2:]] == [EngineBroken] * 2
        assert "assert" not in str(replies[2].outcome)
        assert len(broken) == 1
        with pytest.raises(EngineBroken):
            opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=1), Collected())
        opened.engine.cancel(0)
        assert opened.counts == (0, 0, 0)


def test_every_sequence_ends_when_the_engine_breaks_those_in_the_failed_pass_too(
    model: Any,
) -> None:
    limits = SchedulerLimits(KV_TOKENS, sequences=2, chunk=64)
    with RunningEngine(always_failing(model), limits=limits) as opened:
        replies = opened.together(PROMPTS, max_new_tokens=5)
        assert [type(callback.outcome) for callback in replies] == [EngineBroken] * 4


def test_a_callback_that_raises_does_not_keep_others_from_hearing_of_a_broken_engine(
    model: Any,
) -> None:
    has_ended = threading.Event()
    callbacks = [Collected(), BadEnd(), BadEnd(), Collected()]
    limits = SchedulerLimits(KV_TOKENS, sequences=2, chunk=64)
    with RunningEngine(
        always_failing(model), limits=limits, on_broken=lambda _: has_ended.set()
    ) as opened:
        opened.together(PROMPTS, callbacks, max_new_tokens=5)
        assert has_ended.wait(30)
    assert isinstance(callbacks[3].outcome, EngineBroken)


def test_a_sequence_that_arrives_while_the_engine_breaks_ends_too(model: Any) -> None:
    """Its request is still in the mailbox at that moment."""
    late = Collected()
    runner = always_failing(model)
    with RunningEngine(runner) as opened:
        runner.before = lambda rows: submit_and_fail(opened.engine, late, rows)
        first = opened.together([PROMPT], max_new_tokens=5)[0]
        assert isinstance(first.outcome, GenerationFailed | EngineBroken)
        with pytest.raises(EngineBroken):
            late.wait()


def submit_and_fail(engine: Engine, late: Collected, rows: Sequence[SequenceChunk]) -> None:
    if rows[0].key == -1:  # the pass that tells whether the model works
        engine.submit(PROMPT, SamplingParams(max_new_tokens=5), late)
    raise RuntimeError("device-side assert")


# The thread


def test_the_thread_ends_when_it_is_stopped_idle_or_at_work(model: Any) -> None:
    for work in (False, True):
        opened = RunningEngine(batch_runner(model))
        callback = Collected()
        if work:
            begun = threading.Event()
            callback = Collected(lambda _, begun=begun: begun.set())
            opened.engine.submit(PROMPT, SamplingParams(max_new_tokens=70), callback)
            assert begun.wait(60)
        opened.engine.stop()
        assert opened.engine.join(30)
        assert callback.outcome is None


def test_many_threads_submit_and_cancel(opened: RunningEngine, greedy: list[list[int]]) -> None:
    def work(index: int) -> None:
        for _ in range(3):
            gone = Collected()
            key = opened.engine.submit(PROMPTS[index], SamplingParams(max_new_tokens=12), gone)
            kept = Collected.of(opened.engine, PROMPTS[index], max_new_tokens=12)
            opened.engine.cancel(key)
            replies[index].append(kept.tokens)

    replies: list[list[list[int]]] = [[] for _ in PROMPTS]
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert replies == [[tokens] * 3 for tokens in greedy]
