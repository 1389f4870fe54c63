"""The numbers in the readiness body and the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from predictor.weights.progress import FILLING, Progress
from tests.conftest import Checkpoints
from tests.serving import bring_up

SIZES = {"embed.weight": 100, "h.0.a": 10, "h.0.b": 30, "h.1.a": 60, "h.10.a": 5}
BLOCKS = ("h.0", "h.1", "h.10")


def test_bytes_and_blocks_are_counted_as_tensors_are_done() -> None:
    progress = Progress()
    progress.begin("reading weights", SIZES, BLOCKS)
    for name in ("embed.weight", "h.0.a"):
        progress.done(name)
    numbers = progress.as_json()
    assert (numbers["phase"], numbers["bytes_done"]) == ("reading weights", 110)
    assert numbers["bytes_total"] == 205
    assert (numbers["blocks_done"], numbers["blocks_total"]) == (0, 3)
    progress.done("h.0.b")
    assert progress.as_json()["blocks_done"] == 1
    progress.done("h.10.a")
    assert progress.as_json()["blocks_done"] == 2


def test_a_tensor_counts_once_and_an_unknown_one_not_at_all() -> None:
    progress = Progress()
    progress.begin("reading weights", SIZES, BLOCKS)
    for name in ("h.1.a", "h.1.a", "nothing.known"):
        progress.done(name)
    assert progress.as_json()["bytes_done"] == 60


def test_time_left_follows_from_the_rate() -> None:
    now = 100.0
    progress = Progress(clock=lambda: now)
    progress.begin("reading weights", {"a": 300, "b": 100}, ())
    now = 103.0
    progress.done("a")
    numbers = progress.as_json()
    assert numbers["bytes_per_second"] == 100
    assert numbers["seconds_left"] == 1.0


def test_weights_that_are_fetched_have_a_phase_with_its_own_rate_and_time_left() -> None:
    now = 100.0
    progress = Progress(clock=lambda: now)
    progress.begin("reading weights", {"a": 300, "b": 100}, ())
    now = 150.0
    progress.fetched(0, 400)  # the rate counts from the first bytes
    now = 160.0
    progress.fetched(100, 300)
    now = 170.0
    progress.fetched(100, 200)
    assert progress.as_json() == {
        "phase": "fetching weights",
        "bytes_done": 200,
        "bytes_total": 400,
        "blocks_done": 0,
        "blocks_total": 0,
        "bytes_per_second": 20,
        "seconds_left": 10.0,
    }
    progress.done("a")
    numbers = progress.as_json()
    assert (numbers["phase"], numbers["bytes_done"]) == ("reading weights", 300)
    now = 180.0
    progress.fetched(200, 0)
    numbers = progress.as_json()
    assert (numbers["bytes_done"], numbers["bytes_total"]) == (400, 400)
    assert (numbers["phase"], numbers["seconds_left"]) == ("fetching weights", 0.0)


def test_log_lines_come_at_most_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    caplog.set_level(logging.INFO)
    progress = Progress(clock=lambda: now)
    progress.begin("reading weights", {str(index): 1024 for index in range(100)}, ())
    for index in range(100):
        now += 0.11
        progress.done(str(index))
    assert len(caplog.records) == 2
    assert "of 100.00 KiB" in caplog.text


def test_loading_and_filling_count_every_byte(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: dict[Any, Any] = {}
    begin = Progress.begin

    def record(progress: Progress, *arguments: Any) -> None:
        numbers = progress.as_json()
        phases[numbers["phase"]] = numbers
        begin(progress, *arguments)

    monkeypatch.setattr(Progress, "begin", record)
    up = bring_up(checkpoints("llama"))
    up.weights.filling.finish()
    total = sum(tensor.nbytes for tensor in up.model.parameters())
    in_blocks = sum(tensor.nbytes for tensor in up.model.model.layers.parameters())
    up.weights.release()

    read = [phases[name] for name in ("reading weights", FILLING)]
    assert all(numbers["bytes_done"] == numbers["bytes_total"] for numbers in read)
    assert phases["reading weights"]["bytes_total"] == total - in_blocks
    assert in_blocks <= phases[FILLING]["bytes_total"] < in_blocks * 1.1  # whole pages
    assert phases[FILLING]["blocks_done"] == phases[FILLING]["blocks_total"] == 6
    assert up.progress.as_json()["phase"] == "serving"
