"""The encoder engine: batching, waiting, cancelling, and failing one at a time."""

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
    """A callback that waits for its outcome."""

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
def engine(runner: Counting) -> Iterator[EncoderEngine]:
    running = open_encoder_engine(runner)
    yield running
    runner.may_go.set()
    running.stop()


def submit(engine: EncoderEngine, *ids: int) -> Outcome:
    callback = Outcome()
    engine.submit(EncoderInput(ids), callback)
    return callback


def held(engine: EncoderEngine, runner: Counting) -> Outcome:
    """Has the runner stand still in a first pass, so that what comes next waits."""
    runner.may_go.clear()
    runner.is_running.clear()
    callback = submit(engine, 1)
    assert runner.is_running.wait(20)
    return callback


def test_waiting_texts_share_a_forward_pass(engine: EncoderEngine, runner: Counting) -> None:
    first = held(engine, runner)
    others = [submit(engine, n, n) for n in range(2, 6)]
    runner.may_go.set()
    assert [callback.wait() for callback in others] == [4, 6, 8, 10]
    assert first.wait() == 1
    assert [len(batch) for batch in runner.passes] == [1, 4]


def test_a_text_that_fails_fails_alone(engine: EncoderEngine, runner: Counting) -> None:
    first = held(engine, runner)
    callbacks = [submit(engine, *ids) for ids in ((2,), (3,), (BAD,), (4,), (5,))]
    runner.may_go.set()
    outcomes = [callback.wait() for callback in callbacks]
    assert isinstance(outcomes.pop(2), GenerationFailed)
    assert [first.wait(), *outcomes] == [1, 2, 3, 4, 5]
    assert submit(engine, 7).wait() == 7  # it goes on


def test_texts_that_all_fail_do_not_break_a_model_that_is_well(
    engine: EncoderEngine, runner: Counting
) -> None:
    assert isinstance(submit(engine, BAD).wait(), GenerationFailed)
    assert submit(engine, 7).wait() == 7


def test_a_model_that_fails_on_anything_is_broken(runner: Counting) -> None:
    ended: list[EngineBroken] = []
    came = threading.Event()

    def on_broken(error: EngineBroken) -> None:
        ended.append(error)
        came.set()

    engine = open_encoder_engine(runner, on_broken=on_broken)
    first = held(engine, runner)
    waiting = [submit(engine, *range(1, 50)) for _ in range(3)]
    runner.is_broken = True
    runner.may_go.set()
    assert isinstance(first.wait(), EngineBroken)
    assert all(isinstance(callback.wait(), EngineBroken) for callback in waiting)
    assert came.wait(20)
    with pytest.raises(EngineBroken):
        submit(engine, 1)


def test_weights_that_cannot_be_read_end_the_engine_at_once(runner: Counting) -> None:
    engine = open_encoder_engine(runner)
    callback = submit(engine, DEADLY)
    assert str(callback.wait()) == "It is over."
    assert len(runner.passes) == 1


def test_a_cancelled_text_is_not_computed(engine: EncoderEngine, runner: Counting) -> None:
    held(engine, runner)
    gone = Outcome()
    engine.cancel(engine.submit(EncoderInput((5,)), gone))
    stays = submit(engine, 6)
    runner.may_go.set()
    assert stays.wait() == 6
    assert gone.outcomes == []
    assert [text.ids for batch in runner.passes for text in batch] == [(1,), (6,)]


def test_a_lone_text_runs_in_the_next_pass_or_the_one_after_whoever_has_a_list(
    engine: EncoderEngine, runner: Counting
) -> None:
    held(engine, runner)
    for _ in range(8):
        request = engine.new_request()
        for _ in range(32):
            engine.submit(EncoderInput((7,) * 20), Outcome(), request=request)
    lone = Outcome()
    engine.submit(EncoderInput((3, 4)), lone, request=engine.new_request())
    runner.may_go.set()
    assert lone.wait() == 7
    index = next(i for i, batch in enumerate(runner.passes) if batch[0].ids == (3, 4))
    assert index <= 2  # the first pass ran before


def test_a_pass_waits_for_others_as_long_as_it_may(runner: Counting) -> None:
    engine = open_encoder_engine(runner, BatchLimits(tokens=64, rows=2, delay=20.0))
    first = submit(engine, 1)
    time.sleep(0.2)
    assert first.outcomes == []
    second = submit(engine, 2)  # now it is full
    assert [first.wait(), second.wait()] == [1, 2]
    engine.stop()
    began = time.monotonic()
    patient = open_encoder_engine(runner, BatchLimits(tokens=64, rows=2, delay=0.3))
    assert submit(patient, 3).wait() == 3
    assert time.monotonic() - began >= 0.3
    patient.stop()


def test_a_callback_that_fails_does_no_harm(engine: EncoderEngine) -> None:
    def callback(_: Any) -> None:
        raise RuntimeError("the event loop is gone")

    engine.submit(EncoderInput((1,)), callback)
    assert submit(engine, 2).wait() == 2


def test_prompt_tokens_are_counted(engine: EncoderEngine) -> None:
    name = "predictor_prompt_tokens_total"
    before = REGISTRY.get_sample_value(name, {"model_name": "test"}) or 0
    submit(engine, 1, 2, 3).wait()
    after = REGISTRY.get_sample_value(name, {"model_name": "test"})
    assert after is not None
    assert after - before == 3


def test_an_idle_engine_reports_no_waiting_and_no_running_texts(
    engine: EncoderEngine, runner: Counting
) -> None:
    held(engine, runner)
    last = [submit(engine, n) for n in (2, 3)][-1]
    runner.may_go.set()
    last.wait()
    engine.stop()
    assert engine.join(20)
    for name in ("predictor_sequences_waiting", "predictor_sequences_running"):
        assert REGISTRY.get_sample_value(name, {"model_name": "test"}) == 0


def test_bulk_work_that_waits_is_no_load(engine: EncoderEngine, runner: Counting) -> None:
    held(engine, runner)
    names = ("sequences_waiting", "bulk_sequences_waiting", "queue_seconds_count")
    before = gauges(*names)
    callbacks = [Outcome() for _ in range(3)]
    for callback, is_bulk in zip(callbacks, (True, False, True), strict=True):
        engine.submit(EncoderInput(tuple(range(60))), callback, is_bulk=is_bulk)
    waiting = {}
    runner.run, run = (  # type: ignore[method-assign]
        lambda texts: waiting.setdefault(len(waiting), gauges(*names)) and run(texts),
        runner.run,
    )
    runner.may_go.set()
    for callback in callbacks:
        callback.wait()

    assert [each[:2] for each in waiting.values()] == [(0, 2), (0, 1), (0, 0)]
    assert gauges(*names)[2] == before[2] + 1


def gauges(*names: str) -> tuple[float, ...]:
    labels = {"model_name": "test"}
    return tuple(REGISTRY.get_sample_value(f"predictor_{name}", labels) or 0 for name in names)
