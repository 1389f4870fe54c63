"""The tuner's numbers reach torch in the model thread, and the file of later starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from predictor.engine import tuned_threads
from predictor.engine.thread_tuner import ThreadTuner
from predictor.engine.tuned_threads import TunedThreads
from predictor.weights.store.warmup_cache import WarmupCache


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run_until(tuned: TunedThreads, threads: int) -> None:
    """Forward passes that are quickest with so many threads, until torch computes with so many."""
    for _ in range(1000):
        tuned.before_pass(4)
        tuned.after_pass(4, 0.02 if torch.get_num_threads() == threads else 0.06)
        if tuned.tuner.chosen == threads:
            tuned.before_pass(4)
            break
    assert torch.get_num_threads() == threads


def await_writer() -> None:
    for thread in threading.enumerate():
        if thread.name == "warmup-cache":
            thread.join(20)


def test_torch_computes_with_the_number_that_is_chosen() -> None:
    tuned = TunedThreads(ThreadTuner(2, 2), lambda _: None)
    run_until(tuned, 1)
    run_until(tuned, 2)


def test_the_number_of_a_thread_is_set_in_that_thread() -> None:
    seen = []

    def model_thread() -> None:
        run_until(TunedThreads(ThreadTuner(2, 2), lambda _: None), 1)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=model_thread)
    thread.start()
    thread.join()
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_a_corrected_number_is_kept_for_later_starts(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    cache = WarmupCache(file)
    cache.keep(threads=2, batches=1)
    run_until(TunedThreads(ThreadTuner(2, 2), lambda threads: cache.keep(threads=threads)), 1)
    await_writer()
    torch.set_num_threads(2)  # a start has this many when it reads the file
    assert WarmupCache(file).get("threads") == 1
    assert WarmupCache(file).get("batches") == 1


def test_numbers_that_change_often_are_written_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    tuned = TunedThreads(ThreadTuner(2, 2), kept.append)
    for threads in (1, 2, 1, 2, 1):
        run_until(tuned, threads)
        await_writer()
    assert kept == [1]
    monkeypatch.setattr(tuned_threads, "_SECONDS_BETWEEN_WRITES", 0.0)
    later = TunedThreads(ThreadTuner(2, 2), kept.append)
    for threads in (1, 2):
        run_until(later, threads)
        await_writer()
    assert kept == [1, 1, 2]


def test_a_volume_that_hangs_stops_neither_passes_nor_later_numbers() -> None:
    end, kept = threading.Event(), []

    def keep(threads: int) -> None:
        end.wait(20)
        kept.append(threads)

    tuned = TunedThreads(ThreadTuner(2, 2), keep)
    run_until(tuned, 1)
    run_until(tuned, 2)
    assert kept == []
    end.set()
    await_writer()
    assert kept == [1]
