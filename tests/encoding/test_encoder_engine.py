"""The loop of a model that reads: batching, waiting, cancelling, and failing one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.encoding.inputs import EncoderInput
from predictor.errors import EngineBroken, GenerationFailed
from predictor.metrics import EngineMetrics, WeightMetrics

BAD, DEADLY = 666, 999
LIMITS = BatchLimits(tokens=64, rows=8, breakeven_tokens=1000)


class Counting:
    """Stands in for the runner: finds the sum of a text's tokens, and can be held."""

    def __init__(self) -> None:
        self.passes: list[list[EncoderInput]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.is_running = threading.Event()
        self.is_broken = False

    def run(self, texts: Sequence[EncoderInput]) -> Sequence[int]:
        self.is_running.set()
        assert self.may_go.wait(20)
        self.passes.append(list(texts))
        if self.is_broken or any(BAD in text.ids for text in texts):
            raise ValueError("a text that cannot be read")
        if any(DEADLY in text.ids for text in texts):
            raise EngineBroken("It is over.")
        return [sum(text.ids) for text in texts]


class Outcome:
    """A listener that waits for its outcome."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
        self._came = threading.Event()

    def __call__(self, outcome: Any) -> None:
        self.outcomes.append(outcome)
        self._came.set()

    def wait(self) -> Any:
        assert self._came.wait(20)
        (outcome,) = self.outcomes
        return outcome


@pytest.fixture
def runner() -> Counting:
    return Counting()


def open_encoder_engine(
    runner: Counting, limits: BatchLimits = LIMITS, **more: Any
) -> EncoderEngine:
    metrics = EngineMetrics("test", WeightMetrics("test"))
    return EncoderEngine(runner, limits, metrics=metrics, harmless=EncoderInput((0,)), **more)  # type: ignore[arg-type]


@pytest.fixture
def reader(runner: Counting) -> Iterator[EncoderEngine]:
    result = open_encoder_engine(runner)
    yield result
    runner.may_go.set()
    result.stop()


def submit(reader: EncoderEngine, *ids: int) -> Outcome:
    outcome = Outcome()
    reader.submit(EncoderInput(ids), outcome)
    return outcome


def held(reader: EncoderEngine, runner: Counting) -> Outcome:
    """Has the runner stand still in a first pass, so that what comes next waits."""
    runner.may_go.clear()
    runner.is_running.clear()
    outcome = submit(reader, 1)
    assert runner.is_running.wait(20)
    return outcome


def test_what_waits_is_read_in_one_pass(reader: EncoderEngine, runner: Counting) -> None:
    first = held(reader, runner)
    others = [submit(reader, n, n) for n in range(2, 6)]
    runner.may_go.set()
    assert [outcome.wait() for outcome in others] == [4, 6, 8, 10]
    assert first.wait() == 1
    assert [len(batch) for batch in runner.passes] == [1, 4]


def test_a_text_that_fails_fails_alone(reader: EncoderEngine, runner: Counting) -> None:
    first = held(reader, runner)
    outcome = [submit(reader, *ids) for ids in ((2,), (3,), (BAD,), (4,), (5,))]
    runner.may_go.set()
    outcomes = [one.wait() for one in outcome]
    assert isinstance(outcomes.pop(2), GenerationFailed)
    assert [first.wait(), *outcomes] == [1, 2, 3, 4, 5]
    assert submit(reader, 7).wait() == 7  # it goes on


def test_texts_that_all_fail_do_not_break_a_model_that_is_well(
    reader: EncoderEngine, runner: Counting
) -> None:
    assert isinstance(submit(reader, BAD).wait(), GenerationFailed)
    assert submit(reader, 7).wait() == 7


def test_a_model_that_fails_on_anything_is_broken(runner: Counting) -> None:
    ended: list[EngineBroken] = []
    came = threading.Event()

    def on_broken(error: EngineBroken) -> None:
        ended.append(error)
        came.set()

    reader = open_encoder_engine(runner, on_broken=on_broken)
    first = held(reader, runner)
    waiting = [submit(reader, *range(1, 50)) for _ in range(3)]
    runner.is_broken = True
    runner.may_go.set()
    assert isinstance(first.wait(), EngineBroken)
    assert all(isinstance(outcome.wait(), EngineBroken) for outcome in waiting)
    assert came.wait(20)
    with pytest.raises(EngineBroken):
        submit(reader, 1)


def test_weights_that_cannot_be_read_end_the_engine_at_once(runner: Counting) -> None:
    reader = open_encoder_engine(runner)
    outcome = submit(reader, DEADLY)
    assert str(outcome.wait()) == "It is over."
    assert len(runner.passes) == 1


def test_what_is_cancelled_is_not_read(reader: EncoderEngine, runner: Counting) -> None:
    held(reader, runner)
    gone = Outcome()
    reader.cancel(reader.submit(EncoderInput((5,)), gone))
    stays = submit(reader, 6)
    runner.may_go.set()
    assert stays.wait() == 6
    assert gone.outcomes == []
    assert [text.ids for batch in runner.passes for text in batch] == [(1,), (6,)]


def test_a_pass_waits_for_others_as_long_as_it_may(runner: Counting) -> None:
    reader = open_encoder_engine(runner, BatchLimits(tokens=64, rows=2, delay=20.0))
    first = submit(reader, 1)
    time.sleep(0.2)
    assert first.outcomes == []
    second = submit(reader, 2)  # now it is full
    assert [first.wait(), second.wait()] == [1, 2]
    reader.stop()
    began = time.monotonic()
    patient = open_encoder_engine(runner, BatchLimits(tokens=64, rows=2, delay=0.3))
    assert submit(patient, 3).wait() == 3
    assert time.monotonic() - began >= 0.3
    patient.stop()


def test_a_listener_that_fails_does_no_harm(reader: EncoderEngine) -> None:
    def listener(_: Any) -> None:
        raise RuntimeError("the event loop is gone")

    reader.submit(EncoderInput((1,)), listener)
    assert submit(reader, 2).wait() == 2


def test_what_is_read_is_counted(reader: EncoderEngine) -> None:
    name = "predictor_prompt_tokens_total"
    before = REGISTRY.get_sample_value(name, {"model_name": "test"}) or 0
    submit(reader, 1, 2, 3).wait()
    after = REGISTRY.get_sample_value(name, {"model_name": "test"})
    assert after is not None
    assert after - before == 3
