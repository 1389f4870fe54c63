"""The watchdog under a health that the test sets."""

from __future__ import annotations

import logging

import pytest

from predictor.errors import EngineBroken
from predictor.heartbeat import Health
from predictor.watchdog import Watchdog


class Engine:
    def __init__(self) -> None:
        self.health = Health()
        self.shown: list[bool] = []
        self.ends: list[EngineBroken] = []
        self.watchdog = Watchdog(
            lambda: self.health, show=self.shown.append, on_dead=self.ends.append
        )

    def poll(self, state: str, times: int = 1) -> None:
        self.health = Health(state, "" if state == "ok" else "A forward pass has taken 30 s")  # type: ignore[arg-type]
        for _ in range(times):
            self.watchdog.poll()


def test_each_change_is_one_line_and_one_metric(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    with caplog.at_level(logging.WARNING):
        for state in ("ok", "stalled", "stalled", "ok", "ok"):
            engine.poll(state)
    assert engine.shown == [True, False]
    assert [record.message for record in caplog.records] == [
        "The engine is stalled, so the model is not ready: A forward pass has taken 30 s",
        "The engine goes on, so the model is ready again",
    ]
    assert engine.ends == []


def test_a_dead_engine_is_reported_once_after_it_was_seen_dead_for_a_while() -> None:
    engine = Engine()
    engine.poll("stalled")
    engine.poll("dead", times=9)
    assert engine.ends == []
    engine.poll("dead", times=9)
    (error,) = engine.ends
    assert str(error) == "The engine hangs, so the process ends: A forward pass has taken 30 s."
    assert engine.shown == [True]


def test_an_engine_that_only_seemed_dead_after_a_suspension_is_not_ended() -> None:
    engine = Engine()
    engine.poll("dead", times=9)
    engine.poll("ok")
    engine.poll("dead", times=9)
    assert engine.ends == []
