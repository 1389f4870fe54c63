"""Experts on an accelerator: three tiers, and copies that are waited for.

There is no accelerator here: a stand-in for the copy stream copies as late as possible, so that
code that does not wait for a copy computes with another expert's weights. `tests/test_gpu.py` has
the tests that need a real accelerator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.metrics import WeightMetrics
from predictor.weights.experts.cache import ExpertCache
from predictor.weights.experts.device_cache import DeviceExpertCache
from predictor.weights.experts.reader import ExpertReader
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
    on_device, in_memory = request.param
    layers = [replace(one, device_quota=on_device) for one in stored.layers(in_memory)]
    metrics = WeightMetrics("device-test")
    host = ExpertCache(layers, STAGING, ExpertReader(metrics), metrics)
    stream: Any = LazyCopies()
    device = torch.device("cpu")
    with closing(DeviceExpertCache(layers, STAGING, host, stream, device, metrics)) as opened:
        yield opened


def settled(cache: DeviceExpertCache) -> bool:
    held = [slot for layer in cache.layers for slot in layer.slots.held.values()]
    return sorted([*held, *cache.free]) == list(range(len(cache.slots))) and all(
        set(layer.slots.held) == set(layer.slots.policy.cached) for layer in cache.layers
    )


def test_each_pass_gets_the_weights_of_its_experts_whatever_is_in_the_slots(
    cache: DeviceExpertCache, stored: Stored
) -> None:
    generator = random.Random(0)
    for _ in range(60):
        most = generator.choice([1, 2, 4, EXPERTS])
        touched = [
            generator.sample(range(EXPERTS), generator.randint(1, most)) for _ in range(LAYERS)
        ]
        check_pass(cache, stored, touched, fail_at=generator.choice([-1, -1, -1, 1, 2]))
        assert settled(cache)


def test_an_expert_on_the_accelerator_is_neither_read_nor_copied_again(stored: Stored) -> None:
    layers = [replace(one, device_quota=2) for one in stored.layers(0)]
    metrics = WeightMetrics("device-stays-test")
    host = ExpertCache(layers, STAGING, ExpertReader(metrics), metrics)
    stream: Any = LazyCopies()
    device = torch.device("cpu")
    with closing(DeviceExpertCache(layers, STAGING, host, stream, device, metrics)) as cache:
        for _ in range(5):
            for layer in cache.layers:
                list(layer.fetch(counts([1, 4])))
    assert (metrics.expert_misses, metrics.expert_hits) == (2 * LAYERS, 8 * LAYERS)
    assert metrics.bytes_copied == 2 * LAYERS * 4096
