"""How large a chunk of prompts an offloaded model has memory for, in exact numbers."""

from __future__ import annotations

import dataclasses

from predictor.placement.plan import Placement, PlacementOptions
from predictor.placement.planner import plan
from tests.placement.small import MIB, footprint, pod

SPARE = 2 * MIB // 64
"""Activations of a further token of a chunk: 2 MiB for 64 tokens."""


def planned(memory: float, *, largest: int = 256, **options: object) -> Placement:
    model = dataclasses.replace(
        footprint(), prefill_chunk=16, largest_chunk=largest, activations_per_chunk_token=SPARE
    )
    given = {"headroom": 0.0, "max_concurrency": 1} | options
    return plan(model, pod(memory=memory), PlacementOptions(**given))  # type: ignore[arg-type]


def test_a_model_that_is_not_offloaded_keeps_to_the_least_chunk() -> None:
    placement = planned(2000)
    assert not placement.offloaded
    assert placement.prefill_chunk == 16


def test_a_chunk_takes_memory_that_is_left_and_no_weight_moves_for_it() -> None:
    for memory in range(30, 73):
        least, larger = planned(memory, largest=0), planned(memory)
        if not least.offloaded:
            continue
        assert larger.device_map == least.device_map
        free = least.tier("cpu").budget - least.tier("cpu").planned  # type: ignore[operator]
        fitting = [size for size in (256, 128, 64, 32) if (size - 16) * SPARE <= free]
        assert larger.prefill_chunk == max(fitting, default=16)
        more = (larger.prefill_chunk - 16) * SPARE
        assert larger.tier("cpu").activations - least.tier("cpu").activations == more


def test_most_sequences_are_kept_beside_a_larger_chunk() -> None:
    options = {"max_concurrency": None, "max_batch_size": 64}
    for memory in range(30, 73, 4):
        least, larger = planned(memory, largest=0, **options), planned(memory, **options)
        assert larger.kv_tokens >= 7 / 8 * least.kv_tokens
