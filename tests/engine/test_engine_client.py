"""The engine's client over a real channel; the test is the engine process."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from predictor.engine.encoding.inputs import EncoderInput
from predictor.engine.generation.sampling_params import SamplingParams, Token
from predictor.engine.process.channel import Channel
from predictor.engine.process.client import EncoderClient, GenerationClient
from predictor.engine.process.messages import Broken, Cancel, Encode, Generate, Results
from predictor.errors import EngineBroken, GenerationFailed
from predictor.heartbeat import Health, Timeouts

PARAMS = SamplingParams(5)


@dataclass
class Heard:
    """A callback that keeps what it hears, and stops at a token."""

    stop_at: int = -1
    fails_at: int = -1
    heard: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def on_token(self, token: Token) -> bool:
        if token.id == self.fails_at:
            raise RuntimeError("the loop is gone")
        self.heard.put(token)
        return token.id == self.stop_at

    def on_finish(self, outcome: Any) -> None:
        self.heard.put(outcome)

    def next(self) -> Any:
        return self.heard.get(timeout=20)


@dataclass
class Engine:
    """The test's end of the channel."""

    channel: Channel
    broken: queue.SimpleQueue[EngineBroken]
    client: Any

    def send(self, *items: tuple[int, Any]) -> None:
        self.channel.send(Results(items, ()))


def make(kind: Any) -> Iterator[Engine]:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    broken: queue.SimpleQueue[EngineBroken] = queue.SimpleQueue()
    client = kind(theirs, on_broken=broken.put, ended=lambda: EngineBroken("It ended."))
    yield Engine(ours, broken, client)
    ours.close()
    broken.get(timeout=20)
    theirs.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    yield from make(GenerationClient)


@pytest.fixture
def encoder() -> Iterator[Engine]:
    yield from make(EncoderClient)


def test_a_sequence_is_submitted_and_its_tokens_come_back(engine: Engine) -> None:
    heard = Heard()
    request = engine.client.new_request()
    key = engine.client.submit((1, 2), PARAMS, heard, request=request)
    assert engine.channel.receive() == Generate(key, request, (1, 2), PARAMS)
    scored = Token(8, -0.5, ((8, -0.5),))
    engine.send((key, 7), (key, scored), (key, "length"))
    assert [heard.next() for _ in range(3)] == [Token(7), scored, "length"]


def test_a_callback_that_stops_ends_its_sequence_here_and_there(engine: Engine) -> None:
    heard, other = Heard(stop_at=7), Heard()
    key = engine.client.submit((1,), PARAMS, heard)
    neighbour = engine.client.submit((1,), PARAMS, other)
    engine.send((key, 7), (neighbour, 9), (key, 8), (neighbour, "length"))
    assert [heard.next(), heard.next()] == [Token(7), "stop_sequence"]
    assert [other.next(), other.next()] == [Token(9), "length"]
    assert heard.heard.empty()  # it does not hear of the token that was on its way
    assert [engine.channel.receive() for _ in range(3)][2] == Cancel(key)


def test_a_cancelled_sequence_hears_no_more_and_one_that_is_over_is_not_cancelled(
    engine: Engine,
) -> None:
    heard, over = Heard(), Heard()
    key, done = (engine.client.submit((1,), PARAMS, each) for each in (heard, over))
    engine.send((done, "length"))
    assert over.next() == "length"
    engine.client.cancel(done)
    engine.client.cancel(key)
    engine.send((key, 7), (key, "length"))
    received = [engine.channel.receive() for _ in range(3)]
    assert received[2] == Cancel(key)
    assert heard.heard.empty()


def test_a_callback_that_fails_fails_alone(engine: Engine) -> None:
    failing, other = Heard(fails_at=7), Heard()
    key = engine.client.submit((1,), PARAMS, failing)
    neighbour = engine.client.submit((1,), PARAMS, other)
    engine.send((key, 7), (neighbour, "length"))
    assert isinstance(failing.next(), GenerationFailed)
    assert other.next() == "length"
    assert [engine.channel.receive() for _ in range(3)][2] == Cancel(key)


@pytest.mark.parametrize("says_so", [True, False])
def test_all_end_with_a_broken_engine_or_its_process(engine: Engine, says_so: bool) -> None:
    heard = Heard()
    engine.client.submit((1,), PARAMS, heard)
    if says_so:
        engine.channel.send(Broken(EngineBroken("It broke.")))
    else:
        engine.channel.close()
    sentence = "It broke." if says_so else "It ended."
    assert str(heard.next()) == sentence
    error = engine.broken.get(timeout=20)
    assert str(error) == sentence
    with pytest.raises(EngineBroken, match=sentence):
        engine.client.submit((1,), PARAMS, heard)
    engine.broken.put(error)  # for the end of the test


def test_results_that_cannot_be_read_break_the_engine(engine: Engine) -> None:
    heard = Heard()
    engine.client.submit((1,), PARAMS, heard)
    engine.channel.send(Results(((1, 2, 3),), ()))  # type: ignore[arg-type]
    assert isinstance(heard.next(), EngineBroken)
    error = engine.broken.get(timeout=20)
    assert "cannot be received" in str(error)
    engine.broken.put(error)  # for the end of the test


def test_texts_are_encoded_together_without_what_only_their_task_needs(encoder: Engine) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    texts = [EncoderInput((1, 2), (0, 1), (1,), about=object()), EncoderInput((3,))]
    keys = encoder.client.submit_all(texts, [heard.put, heard.put], request=4)
    rows = [(keys[0], (1, 2), (0, 1), (1,)), (keys[1], (3,), None, ())]
    assert encoder.channel.receive() == Encode(4, rows)
    encoder.send((keys[0], np.array([1.5], dtype=np.float32)))
    assert heard.get(timeout=20).tolist() == [1.5]


def test_the_health_is_what_the_process_reports(engine: Engine) -> None:
    reported = Health("stalled", "A forward pass takes long")
    engine.channel.send(reported)
    deadline = time.monotonic() + 20
    while engine.client.health(Timeouts()) != reported and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.client.health(Timeouts()) == reported
