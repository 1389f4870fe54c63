"""Experts on an accelerator: three tiers, and copies that are waited for.

There is no accelerator here: a stand-in for the copy stream copies as late as possible, so that
code that does not wait for a copy computes with another expert's weights. `tests/test_gpu.py` has
the tests that need a real accelerator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.metrics import WeightMetrics
from predictor.weights.experts.cache import ExpertCache
from predictor.weights.experts.device_cache import DeviceExpertCache
from predictor.weights.experts.reader import ExpertReader
from predictor.weights.experts.ways import Way, WayChoice
from tests.weights.experts.test_cache import EXPERTS, LAYERS, STAGING, Stored, check_pass, counts


class LazyCopies:
    """Stands in for a copy stream: a copy is made when it is waited for, in order."""

    def __init__(self) -> None:
        self._requested: list[Any] = []

    def record(self) -> None:
        """Computation is done at once."""

    def copy(self, into: Any, source: Any, after: Any) -> Any:
        self._requested.append((into, source))
        return self._requested[-1]

    def synchronize(self, event: Any) -> None:
        while any(event is request for request in self._requested):
            into, source = self._requested.pop(0)
            for target, tensor in zip(into, source, strict=True):
                target.copy_(tensor)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


@pytest.fixture(params=[(0, 0), (1, 2), (3, 3), (8, 0)], ids=str)
def cache(request: pytest.FixtureRequest, stored: Stored) -> Iterator[DeviceExpertCache]:
    with opened(stored, *request.param) as cache:
        yield cache


def choose(monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    """Have all passes take this way, instead of the fastest."""
    monkeypatch.setattr(WayChoice, "begin_pass", lambda self, _: setattr(self, "way", way))


def settled(cache: DeviceExpertCache) -> bool:
    held = [slot for layer in cache.layers for slot in layer.slots.held.values()]
    return sorted([*held, *cache.free]) == list(range(len(cache.slots))) and all(
        set(layer.slots.held) == set(layer.slots.policy.cached) for layer in cache.layers
    )


@pytest.mark.parametrize("way", list(Way))
def test_each_pass_gets_the_weights_of_its_experts_whatever_is_in_the_slots(
    cache: DeviceExpertCache, stored: Stored, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    choose(monkeypatch, way)
    generator = random.Random(0)
    for _ in range(60):
        most = generator.choice([1, 2, 4, EXPERTS])
        touched = [
            generator.sample(range(EXPERTS), generator.randint(1, most)) for _ in range(LAYERS)
        ]
        check_pass(cache, stored, touched, fail_at=generator.choice([-1, -1, -1, 1, 2]))
        assert settled(cache)


@contextmanager
def opened(stored: Stored, on_device: int, in_memory: int) -> Iterator[DeviceExpertCache]:
    layers = [replace(one, device_quota=on_device) for one in stored.layers(in_memory)]
    metrics = WeightMetrics("device-test")
    host = ExpertCache(layers, STAGING, ExpertReader(metrics), metrics, computes_beside=True)
    stream: Any = LazyCopies()
    device = torch.device("cpu")
    with closing(DeviceExpertCache(layers, STAGING, host, stream, device, metrics)) as cache:
        yield cache


def test_an_expert_on_the_accelerator_is_neither_read_nor_copied_again(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, Way.NONE)
    with opened(stored, 2, 0) as cache:
        metrics = cache.metrics
        for _ in range(5):
            for layer in cache.layers:
                list(layer.fetch(counts([1, 4])))
    assert (metrics.expert_misses, metrics.expert_hits) == (2 * LAYERS, 8 * LAYERS)
    assert metrics.bytes_copied == 2 * LAYERS * 4096


@pytest.mark.parametrize(("on_device", "copied"), [(0, 0), (1, 1)])
def test_experts_that_do_not_stay_on_the_accelerator_are_computed_in_main_memory(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, on_device: int, copied: int
) -> None:
    choose(monkeypatch, Way.COMPUTED)
    with opened(stored, on_device, EXPERTS) as cache:
        for _ in range(5):
            check_pass(cache, stored, [[1, 4]] * LAYERS)
            assert settled(cache)
    assert cache.metrics.bytes_copied == copied * LAYERS * 4096
    assert cache.metrics.expert_misses == 2 * LAYERS


def test_passes_of_many_rows_are_computed_on_the_accelerator(stored: Stored) -> None:
    with opened(stored, 1, EXPERTS) as cache:
        ways = {1: set[Way](), 512: set[Way]()}
        for rows, chosen in ways.items():
            for _ in range(20):
                for layer in cache.layers:
                    list(layer.fetch([rows] * EXPERTS))
                    chosen.add(cache._host.choice.way)
    assert Way.COMPUTED in ways[1]
    assert Way.COMPUTED not in ways[512]
