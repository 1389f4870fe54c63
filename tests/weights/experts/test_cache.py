"""Whatever is in the slots, a forward pass gets the weights of the experts that it uses."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.errors import WeightsUnreadable
from predictor.metrics import WeightMetrics
from predictor.weights.experts.cache import ExpertCache
from predictor.weights.experts.extents import ExpertExtent, FileRange, SlotLayout
from predictor.weights.experts.reader import ExpertReader
from predictor.weights.experts.slots import LayerExperts
from predictor.weights.experts.ways import Way, WayChoice
from predictor.weights.extents import TensorView, identify_file

EXPERTS, LAYERS, STAGING = 8, 3, 2
SHAPES = {"gate_up_proj": (6, 5), "down_proj": (5, 3)}
SIZE = sum(4 * a * b for a, b in SHAPES.values())  # 180 bytes: no range begins at a page
OFFSET = 100


class Stored:
    """Layers of experts in a file, each expert in one range of bytes that begins anywhere."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "experts"
        torch.manual_seed(0)
        self.values = torch.randn(LAYERS, EXPERTS, SIZE // 4)
        self.content = os.urandom(OFFSET) + self.values.numpy().tobytes()
        self.file.write_bytes(self.content)

    def layers(self, quota: int, stored: torch.dtype = torch.float32) -> list[LayerExperts]:
        views, at = [], 0
        for name, shape in SHAPES.items():
            views.append(TensorView(name, torch.float32, shape, at))
            at += views[-1].nbytes
        layout = SlotLayout(tuple(views), 4096)
        identity = identify_file(self.file.stat())

        def extent(layer: int, expert: int) -> ExpertExtent:
            begin = OFFSET + (layer * EXPERTS + expert) * SIZE
            part = FileRange(self.file, begin, SIZE, 0, stored, torch.float32, identity)
            return ExpertExtent(f"layer{layer}.{expert}", (part,), "checkpoint")

        return [
            LayerExperts(
                f"layer{layer}", layout, tuple(extent(layer, e) for e in range(EXPERTS)), quota
            )
            for layer in range(LAYERS)
        ]

    def expected(self, layer: int, expert: int) -> torch.Tensor:
        return self.values[layer, expert]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


@pytest.fixture(params=[0, 1, 3, 8])
def cache(request: pytest.FixtureRequest, stored: Stored) -> Iterator[ExpertCache]:
    metrics = WeightMetrics("cache-test")
    reader = ExpertReader(metrics, threads=3, piece_bytes=8192)
    with closing(ExpertCache(stored.layers(request.param), STAGING, reader, metrics)) as opened:
        yield opened


def counts(touched: Sequence[int]) -> list[int]:
    return [int(expert in touched) for expert in range(EXPERTS)]


def check_pass(
    cache: ExpertCache, stored: Stored, touched: Sequence[Sequence[int]], *, fail_at: int = -1
) -> None:
    """Run a pass that uses these experts of each layer; let it fail after so many experts."""
    for index, layer in enumerate(cache.layers):
        seen = set()
        with closing(layer.fetch(counts(touched[index]))) as experts:
            for expert, weights in experts:
                value = torch.cat([tensor.reshape(-1) for tensor in weights.values()])
                assert torch.equal(value, stored.expected(index, expert))
                seen.add(expert)
                if len(seen) == fail_at:
                    return
        assert seen == set(touched[index])


def settled(cache: ExpertCache) -> bool:
    """Whether every slot is either free or holds an expert that stays or was read ahead."""
    held = [slot for layer in cache.layers for slot in layer.slots.held.values()]
    ahead = [read.slot for layer in cache.layers for read in layer._ahead.values()]
    return sorted([*held, *ahead, *cache.free]) == list(range(len(cache.slots))) and all(
        set(layer.slots.held) == set(layer.slots.policy.cached) for layer in cache.layers
    )


@pytest.mark.parametrize("ahead", list(Way))
def test_each_pass_gets_the_weights_of_its_experts_whatever_is_in_the_slots(
    cache: ExpertCache, stored: Stored, monkeypatch: pytest.MonkeyPatch, ahead: Way
) -> None:
    monkeypatch.setattr(WayChoice, "begin_pass", lambda self, _: setattr(self, "way", ahead))
    generator = random.Random(0)
    for _ in range(60):
        most = generator.choice([1, 2, 4, EXPERTS])
        touched = [
            generator.sample(range(EXPERTS), generator.randint(1, most)) for _ in range(LAYERS)
        ]
        fail_at = generator.choice([-1, -1, -1, 1, 2])
        check_pass(cache, stored, touched, fail_at=fail_at)
        assert settled(cache)
    assert len(cache.free) + sum(len(layer._ahead) for layer in cache.layers) >= STAGING


def test_an_expert_that_stays_is_not_read_again(stored: Stored) -> None:
    metrics = WeightMetrics("stays-test")
    with closing(ExpertCache(stored.layers(2), STAGING, ExpertReader(metrics), metrics)) as cache:
        for _ in range(5):
            check_pass(cache, stored, [[1, 4]] * LAYERS)
    assert (metrics.expert_misses, metrics.expert_hits) == (2 * LAYERS, 8 * LAYERS)


def test_a_read_that_fails_is_named_and_the_next_pass_reads_again(stored: Stored) -> None:
    metrics = WeightMetrics("fails-test")
    reader = ExpertReader(metrics)
    with closing(ExpertCache(stored.layers(3), STAGING, reader, metrics)) as cache:
        check_pass(cache, stored, [[0, 1, 2]] * LAYERS)
        os.truncate(stored.file, OFFSET + SIZE)
        with pytest.raises(WeightsUnreadable, match=r"layer0\.7 cannot be read from"):
            list(cache.layers[0].fetch(counts([0, 7])))
        assert settled(cache)
    assert 7 not in cache.layers[0].slots.policy.cached


def test_stored_values_of_another_dtype_are_cast_while_they_are_read(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    values = stored.values.to(torch.bfloat16)
    stored.file.write_bytes(bytes(OFFSET) + values.view(torch.int16).numpy().tobytes())
    identity = identify_file(stored.file.stat())
    layers = stored.layers(1)
    layer = layers[0]
    half = tuple(
        ExpertExtent(
            extent.name,
            tuple(
                FileRange(
                    *(part.file, OFFSET + (part.begin - OFFSET) // 2, SIZE // 2, 0),
                    *(torch.bfloat16, torch.float32, identity),
                )
                for part in extent.ranges
            ),
            "checkpoint",
        )
        for extent in layer.extents
    )
    metrics = WeightMetrics("cast-test")
    one = [LayerExperts(layer.name, layer.layout, half, 1)]
    with closing(ExpertCache(one, STAGING, ExpertReader(metrics), metrics)) as cache:
        for expert, weights in cache.layers[0].fetch(counts(range(EXPERTS))):
            value = torch.cat([tensor.reshape(-1) for tensor in weights.values()])
            assert torch.equal(value, values[0, expert].float())


class Times:
    """Seconds of passes, which a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


WAYS = (Way.NONE, Way.ALL, Way.GUESSED)


def run_passes(seconds: Callable[[int], dict[Way, float]], passes: int) -> list[Way]:
    """The ways of so many passes, whose times in each way are given for each pass."""
    clock: Any = Times()
    chooser, ways = WayChoice(WAYS, clock=clock), []
    for number in range(passes):
        chooser.begin_pass(4)
        ways.append(chooser.way)
        clock.now += seconds(number)[chooser.way]
        chooser.end_pass()
    return ways


@pytest.mark.parametrize("fastest", WAYS)
def test_the_fastest_way_is_taken_and_the_others_tried_from_time_to_time(fastest: Way) -> None:
    ways = run_passes(lambda _: dict.fromkeys(WAYS, 1.2) | {fastest: 1.0}, passes=4000)
    for other in set(WAYS) - {fastest}:
        assert 1 <= ways[9:].count(other) <= 20


def test_a_way_that_becomes_the_fastest_is_found() -> None:
    before = {Way.NONE: 1.0, Way.ALL: 2.0, Way.GUESSED: 1.5}
    after = before | {Way.ALL: 0.5}
    ways = run_passes(lambda number: after if number > 1000 else before, passes=6000)
    assert ways[-1] is Way.ALL


def test_experts_that_are_guessed_are_read_before_their_layer_begins(stored: Stored) -> None:
    metrics = WeightMetrics("guess-test")
    layers = [replace(one, guess=lambda _: [2, 5]) for one in stored.layers(0)]
    with closing(ExpertCache(layers, STAGING, ExpertReader(metrics), metrics)) as cache:
        cache.choice = WayChoice((Way.GUESSED,), clock=Times())
        list(cache.layers[0].fetch(counts([]), torch.zeros(1, 4)))
        assert set(cache.layers[1]._ahead) == {2, 5}
        check_layer(cache, stored, 1, [2, 3])
    assert metrics.expert_misses == 2


def check_layer(cache: ExpertCache, stored: Stored, index: int, touched: Sequence[int]) -> None:
    for expert, weights in cache.layers[index].fetch(counts(touched)):
        value = torch.cat([tensor.reshape(-1) for tensor in weights.values()])
        assert torch.equal(value, stored.expected(index, expert))


def test_a_way_whose_passes_fail_is_left() -> None:
    clock: Any = Times()
    chooser, ways = WayChoice(WAYS, clock=clock), []
    for _ in range(40):
        chooser.begin_pass(4)
        ways.append(chooser.way)
        clock.now += 1.0
        if chooser.way is not Way.GUESSED:
            chooser.end_pass()
    assert ways[9:].count(Way.GUESSED) <= 1
