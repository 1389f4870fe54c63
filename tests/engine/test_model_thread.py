"""The model thread under a policy that stands in for both: mailbox, failures, and the end."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from predictor.engine.model_thread import ModelThread
from predictor.errors import EngineBroken, GenerationFailed, WeightsUnreadable

SENTENCE = "The model failed on this request; the server's log has the cause."
BROKEN = "The model's engine has failed; the server's log has the cause."


class Activations:
    """Memory that a failed forward pass held."""


class Fake:
    """A policy whose requests are words. It runs all that wait in one forward pass.

    A word in `poison` makes its forward pass fail, and so do more than `most` words; `is_broken`
    makes every one fail.
    """

    noun = "word"

    def __init__(self, *poison: str) -> None:
        self.poison = set(poison)
        self.is_broken = False
        self.most = 100
        self.idle_wait: float | None = 0.0
        self.waiting: dict[int, str] = {}
        self.running: dict[int, str] = {}
        self.log: list[tuple[str, Any]] = []
        self.held: list[weakref.ref[Activations]] = []
        self.alive: list[int] = []
        self.error: type[Exception] = ValueError

    def idle_seconds(self) -> float | None:
        return self.idle_wait if self.waiting else None

    def add(self, key: int, request: str) -> None:
        self.waiting[key] = request

    def remove(self, key: int) -> None:
        self.waiting.pop(key, None)

    def batches(self) -> Iterator[Sequence[int]]:
        self.running, self.waiting = self.waiting, {}
        yield list(self.running)
        self.log.append(("step over", None))

    def count_tokens(self, rows: Sequence[int]) -> int:
        return len(rows)

    def compute(self, rows: Sequence[int]) -> list[str]:
        self.alive.append(sum(reference() is not None for reference in self.held))
        words = [self.running[key] for key in rows]
        self.log.append(("compute", words))
        if self.is_broken or self.poison.intersection(words) or len(words) > self.most:
            activations = Activations()
            self.held.append(weakref.ref(activations))
            raise self.error("of the model")
        return [word.upper() for word in words]

    def deliver(self, rows: Sequence[int], results: list[str], seconds: float) -> None:
        assert 0 <= seconds < 20
        for key, result in zip(rows, results, strict=True):
            del self.running[key]
            self.log.append(("result", result))

    def recover(self, failed: Sequence[int]) -> list[int]:
        return list(failed)

    def probe(self, failed: Sequence[int]) -> None:
        self.log.append(("probe", [self.running[key] for key in failed]))
        if self.is_broken:
            raise RuntimeError("of the device")

    def fail(self, row: int, error: GenerationFailed) -> None:
        self.log.append((self.running.pop(row), str(error)))

    def fail_all(self, error: EngineBroken) -> None:
        self.log += [(word, str(error)) for word in (self.running | self.waiting).values()]


def run(policy: Fake, *words: str, **hooks: Any) -> ModelThread[str, int]:
    """Submits words that come in at one step, and waits until the thread has stopped after it."""
    thread: ModelThread[str, int] = ModelThread(policy, name="test", **hooks)
    go = threading.Event()
    thread.call(lambda: assert_(go.wait(20)))
    for word in words:
        thread.put(word)
    go.set()
    time.sleep(0.05)
    thread.stop()
    assert thread.join(20)
    return thread


def assert_(happened: bool) -> None:
    assert happened


# One forward pass


def test_requests_that_wait_are_computed_together_and_delivered_in_order() -> None:
    policy = Fake()
    run(policy, "a", "b", "c")
    assert policy.log == [
        ("compute", ["a", "b", "c"]),
        ("result", "A"),
        ("result", "B"),
        ("result", "C"),
        ("step over", None),
    ]


def test_keys_are_given_in_order() -> None:
    thread: ModelThread[str, int] = ModelThread(Fake(), name="test")
    assert [thread.put(word) for word in "abc"] == [0, 1, 2]
    thread.stop()
    assert thread.join(20)


# Failures of one


def test_a_failed_forward_pass_is_halved_until_the_row_at_fault_stands_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = Fake("c")
    with caplog.at_level(logging.WARNING):
        run(policy, "a", "b", "c", "d", "e")
    assert policy.log == [
        ("compute", ["a", "b", "c", "d", "e"]),
        ("compute", ["a", "b"]),
        ("result", "A"),
        ("result", "B"),
        ("compute", ["c", "d", "e"]),
        ("compute", ["c"]),
        ("compute", ["d", "e"]),
        ("result", "D"),
        ("result", "E"),
        ("c", SENTENCE),  # once it is known that not all has failed
        ("step over", None),
    ]
    assert [record.message for record in caplog.records] == [
        "A pass of 5 words failed (ValueError); halved",
        "A pass of 3 words failed (ValueError); halved",
        "The model failed on a word",
    ]


def test_if_no_row_succeeds_the_model_is_probed_before_the_requests_end() -> None:
    policy = Fake("a", "b")
    thread = run(policy, "a", "b")
    assert policy.log == [
        ("compute", ["a", "b"]),
        ("compute", ["a"]),
        ("compute", ["b"]),
        ("probe", ["a", "b"]),
        ("a", SENTENCE),
        ("b", SENTENCE),
        ("step over", None),
    ]
    thread.put("c")  # the thread was stopped, but the model is not broken


def test_memory_of_a_failed_forward_pass_is_released_before_its_halves_run() -> None:
    policy = Fake()
    policy.most = 1
    run(policy, "a", "b", "c", "d")
    assert len(policy.held) == 3  # of four rows, and twice of two
    assert policy.alive == [0] * 7


# A broken model


def test_if_the_probe_fails_all_requests_end_and_then_on_broken_is_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = Fake()
    policy.is_broken = True
    thread = run(policy, "a", "b", on_broken=lambda error: policy.log.append(("end", str(error))))
    assert policy.log == [
        ("compute", ["a", "b"]),
        ("compute", ["a"]),
        ("compute", ["b"]),
        ("probe", ["a", "b"]),
        ("a", BROKEN),
        ("b", BROKEN),
        ("end", BROKEN),
    ]
    assert caplog.records[-1].message == "The engine is broken"
    with pytest.raises(EngineBroken, match="has failed"):
        thread.put("c")
    thread.cancel(0)


def test_an_error_that_says_that_the_engine_is_broken_is_neither_halved_nor_probed() -> None:
    policy = Fake("b")
    policy.error = WeightsUnreadable
    ends: list[EngineBroken] = []
    run(policy, "a", "b", on_broken=ends.append)
    assert policy.log == [
        ("compute", ["a", "b"]),
        ("a", "of the model"),
        ("b", "of the model"),
    ]
    assert [type(error) for error in ends] == [WeightsUnreadable]


def test_a_request_that_arrives_while_the_engine_breaks_ends_too() -> None:
    policy = Fake()
    policy.is_broken = True
    thread: ModelThread[str, int] = ModelThread(policy, name="test")
    probe = policy.probe

    def submit_and_probe(failed: Sequence[int]) -> None:
        thread.put("late")
        probe(failed)

    policy.probe = submit_and_probe  # type: ignore[method-assign]
    thread.put("early")
    assert thread.join(20)
    assert policy.log[-2:] == [("early", BROKEN), ("late", BROKEN)]


# Waiting, cancelling, stopping


def test_passes_that_succeed_are_reported_in_the_model_thread_with_their_tokens() -> None:
    passes: list[tuple[str, int, str]] = []

    class Observer:
        def before_pass(self, tokens: int) -> None:
            passes.append(("before", tokens, threading.current_thread().name))

        def after_pass(self, tokens: int, seconds: float) -> None:
            assert 0 <= seconds < 20
            passes.append(("after", tokens, threading.current_thread().name))

    run(Fake("bad"), "a", "bad", observer=Observer())
    before, after = ("before", 1, "test"), ("after", 1, "test")
    assert passes == [("before", 2, "test"), before, after, before]


def test_a_cancelled_request_is_not_computed() -> None:
    policy = Fake()
    policy.idle_wait = None
    thread: ModelThread[str, int] = ModelThread(policy, name="test")
    key = thread.put("a")
    thread.put("b")
    thread.cancel(key)
    thread.cancel(77)
    thread.call(lambda: setattr(policy, "idle_wait", 0.0))
    thread.put("c")
    time.sleep(0.05)
    thread.stop()
    assert thread.join(20)
    assert policy.log[0] == ("compute", ["b", "c"])


def test_the_thread_waits_for_more_requests_as_long_as_the_policy_says() -> None:
    policy = Fake()
    policy.idle_wait = 0.3
    thread: ModelThread[str, int] = ModelThread(policy, name="test")
    began = time.monotonic()
    thread.put("a")
    thread.put("b")
    while not policy.log:
        time.sleep(0.01)
    assert time.monotonic() - began >= 0.3
    assert policy.log[0] == ("compute", ["a", "b"])
    thread.stop()
    assert thread.join(20)


def test_stop_ends_the_thread_after_the_current_step_and_the_others_hear_no_more() -> None:
    policy = Fake()
    is_computing, may_go = threading.Event(), threading.Event()
    deliver = policy.deliver

    def hold(*args: Any) -> None:
        is_computing.set()
        assert may_go.wait(20)
        deliver(*args)

    policy.deliver = hold  # type: ignore[method-assign]
    thread: ModelThread[str, int] = ModelThread(policy, name="test")
    thread.put("a")
    assert is_computing.wait(20)
    thread.stop()
    thread.put("b")
    assert not thread.join(0.05)
    may_go.set()
    assert thread.join(20)
    assert policy.log == [("compute", ["a"]), ("result", "A"), ("step over", None)]


def test_stop_ends_a_thread_that_waits() -> None:
    thread: ModelThread[str, int] = ModelThread(Fake(), name="test")
    thread.stop()
    assert thread.join(20)


# Hanging


def test_a_thread_that_is_idle_or_broken_has_nothing_under_way() -> None:
    policy = Fake()
    thread = run(policy, "a", "b")
    assert thread.heartbeat.passes.progress == ""
    policy.is_broken = True
    thread = run(policy, "a", "b")
    assert thread.heartbeat.passes.progress == ""


class Weighty:
    """A request whose memory is looked at."""


def test_a_request_that_is_cancelled_before_it_is_taken_in_is_freed_at_once() -> None:
    policy: Any = Fake()
    thread: Any = ModelThread(policy, name="test")
    go = threading.Event()
    thread.call(lambda: assert_(go.wait(20)))  # a long step
    request = Weighty()
    memory = weakref.ref(request)
    key = thread.put(request)
    del request
    thread.cancel(key)
    assert memory() is None
    go.set()
    thread.stop()
    assert thread.join(20)
    assert policy.waiting == {}
