"""After a pass that spoilt what is cached, sequences are computed again as ordinary work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from predictor.engine.generation import encoder_decoder_runner as module
from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.lockstep_batch import LockstepBatch
from predictor.engine.generation.sampling_params import SamplingParams, as_source
from predictor.errors import GenerationFailed
from tests.encoding.checkpoints import encoder_decoder_config
from tests.engine.test_contamination import Ask, generated
from tests.engine.test_engine import KV_TOKENS, RunningEngine, Wrapped, batch_runner
from tests.engine.test_states import limits
from tests.serving import Collected
from tests.states import noisy

PROMPTS = [[50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61], [40, 41, 42], [70, 71, 72, 73, 74]]
NAMES = pytest.mark.parametrize("name", ["mamba2", "jamba"])


def expected(name: str, count: int) -> list[list[int]]:
    params = SamplingParams(max_new_tokens=count)
    return [generated(noisy(name), Ask(prompt, params, 0)).tokens for prompt in PROMPTS]


class Failing:
    """A model's layer that fails when it is told to: amid a pass, after a layer with a state."""

    def __init__(self, model: Any) -> None:
        self.is_due: Callable[[], bool] = lambda: False
        layers = getattr(model, model.base_model_prefix).layers
        self.handle = layers[2].register_forward_pre_hook(self._fail)

    def _fail(self, *_: Any) -> None:
        if self.is_due():
            raise ArithmeticError("of the model")


@pytest.fixture
def run(name: str) -> Iterator[tuple[RunningEngine, Wrapped, Failing]]:
    """An engine, its runner, and the layer that may fail."""
    failing = Failing(noisy(name))
    runner = Wrapped(batch_runner(noisy(name)), lambda _: None)
    own = SchedulerLimits(KV_TOKENS, **limits(name, sequences=3))
    with RunningEngine(runner, limits=own) as engine:
        yield engine, runner, failing
    failing.handle.remove()


def continues(rows: Sequence[SequenceChunk]) -> bool:
    return len(rows) == len(PROMPTS) and all(row.start for row in rows)


@NAMES
def test_a_spoilt_sequence_is_computed_again_once_and_in_passes_of_the_scheduler(
    name: str, run: tuple[RunningEngine, Wrapped, Failing], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, runner, failing = run
    units: list[int] = []
    monkeypatch.setattr(engine.engine.heartbeat, "begin_pass", units.append)
    failed: list[int] = []

    def is_due() -> bool:
        if continues(runner.passes[-1]) and not failed:
            failed.append(len(runner.passes))
        return failed == [len(runner.passes)]

    failing.is_due = is_due
    callbacks = engine.together(PROMPTS, max_new_tokens=6)
    assert [one.tokens for one in callbacks] == expected(name, 6)
    assert failed
    assert len(units) == len(runner.passes)  # each is a piece of work by itself
    again = runner.passes[failed[0] :]
    for row in runner.passes[failed[0] - 1]:
        assert sum(one.key == row.key and not one.start for rows in again for one in rows) == 1


@NAMES
def test_one_that_fails_again_and_again_fails_alone(
    name: str, run: tuple[RunningEngine, Wrapped, Failing]
) -> None:
    """Here each pass of several rows that continue fails, and each of the first sequence."""
    engine, runner, failing = run
    failing.is_due = lambda: (
        continues(runner.passes[-1])
        or any(row.start > len(PROMPTS[0]) and row.key == first for row in runner.passes[-1])
    )
    callbacks = [Collected() for _ in PROMPTS]
    with engine.held():
        first, *_ = (
            engine.engine.submit(prompt, SamplingParams(max_new_tokens=6), callback)
            for prompt, callback in zip(PROMPTS, callbacks, strict=True)
        )
    for callback in callbacks:
        assert callback.ended.wait(60)
    assert isinstance(callbacks[0].outcome, GenerationFailed)
    assert [one.tokens for one in callbacks[1:]] == expected(name, 6)[1:]
    begun = [row.key for rows in runner.passes for row in rows if not row.start]
    assert max(begun.count(key) for key in begun) <= 3


@NAMES
def test_a_cancel_is_heard_while_sequences_are_computed_again(
    name: str, run: tuple[RunningEngine, Wrapped, Failing]
) -> None:
    engine, runner, failing = run
    failed: list[int] = []
    keys: list[int] = []

    def before(_: Sequence[SequenceChunk]) -> None:
        if len(failed) == 1:
            failed.append(len(runner.passes))
            for key in keys:
                engine.engine.cancel(key)

    def is_due() -> bool:
        is_first = not failed and continues(runner.passes[-1])
        if is_first:
            failed.append(len(runner.passes))
        return is_first

    runner.before, failing.is_due = before, is_due
    with engine.held():
        for prompt in PROMPTS:
            keys.append(
                engine.engine.submit(prompt, SamplingParams(max_new_tokens=20), Collected())
            )
    Collected.of(engine.engine, [1], max_new_tokens=9)
    assert len(failed) == 2
    after = [row for rows in runner.passes[failed[1] :] for row in rows if row.key in keys]
    assert all(row.start == 0 for row in after)  # what is left of one step


@NAMES
def test_a_sampler_that_fails_spoils_nobodys_state(
    name: str, run: tuple[RunningEngine, Wrapped, Failing], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, runner, _ = run
    sample = BatchSampler.sample
    failed: list[None] = []

    def once(self: BatchSampler, *args: Any) -> Any:
        if continues(runner.passes[-1]) and not failed:
            failed.append(None)
            raise torch.OutOfMemoryError("no room")
        return sample(self, *args)

    monkeypatch.setattr(BatchSampler, "sample", once)
    callbacks = engine.together(PROMPTS, max_new_tokens=6)
    assert failed
    assert [one.tokens for one in callbacks] == expected(name, 6)


# Encoder-decoder models


@pytest.mark.parametrize("change", ["split", "join"])
def test_batches_that_cannot_change_for_want_of_memory_are_computed_again(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = module if change == "join" else LockstepBatch
    original = getattr(owner, change)
    calls: list[None] = []

    def once(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return original(*args)

    prompts = [[*as_source([40 + n] * (3 + n)), 3] for n in range(4)]
    counts = (4, 12, 12, 12)

    def replies() -> list[list[int]]:
        own = SchedulerLimits(200, sequences=3, chunk=64, breakeven_tokens=64)
        with RunningEngine(
            EncoderDecoderRunner(model, device=torch.device("cpu")), limits=own
        ) as opened:
            callbacks = [Collected() for _ in prompts]
            with opened.held():
                for prompt, count, callback in zip(prompts, counts, callbacks, strict=True):
                    opened.engine.submit(prompt, SamplingParams(max_new_tokens=count), callback)
            return [callback.wait().tokens for callback in callbacks]

    torch.manual_seed(0)
    build: Any = AutoModelForSeq2SeqLM
    model = build.from_config(encoder_decoder_config("t5")).eval()
    wanted = replies()
    monkeypatch.setattr(owner, change, once)
    assert replies() == wanted
    assert len(calls) > 1
