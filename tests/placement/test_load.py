"""How many sequences' states a plan is for."""

from __future__ import annotations

import dataclasses

import pytest

from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.placement.report import table
from tests.placement.small import MIB, footprint, pod

STATE = 2 * MIB
"""Bytes of the states of a sequence, in one of the four blocks."""


def with_states():
    """A model of 54 MiB of weights, 16 of keys and values and 3 of activations."""
    model = footprint()
    units = tuple(
        dataclasses.replace(unit, kv_fixed=STATE if unit.block == 0 else 0) for unit in model.units
    )
    return dataclasses.replace(model, units=units)


def planned(memory, **options):
    given = {"headroom": 0.0, "max_batch_size": 64} | options
    return plan(with_states(), pod(memory=memory), PlacementOptions(**given))


WEIGHTS = 54 + 16 + 3


@pytest.mark.parametrize(
    ("memory", "slots"),
    [
        (WEIGHTS + 2 * 64, 64),
        (WEIGHTS + 2 * 20, 20),  # what is left is for more than 16
        (WEIGHTS + 2 * 8, 8),  # 8 without offloading come before 16 with it
        (WEIGHTS + 2 * 11, 11),
        (WEIGHTS + 2, 1),
    ],
)
def test_states_take_what_the_weights_leave(memory, slots):
    placement = planned(memory)

    assert placement.state_slots == slots
    assert not placement.offloaded


def test_a_model_that_is_offloaded_has_states_for_sixteen_all_the_same():
    placement = planned(WEIGHTS + 1)

    assert placement.offloaded
    assert placement.state_slots >= 16


def test_no_more_states_than_sequences_and_no_fewer_than_those_of_full_length():
    assert planned(400, max_batch_size=5).state_slots == 5
    assert planned(400, max_batch_size=2, max_concurrency=7).state_slots == 7


def test_a_model_that_keeps_nothing_of_a_token_is_planned_without_tokens():
    units = tuple(dataclasses.replace(unit, kv_per_token=0) for unit in with_states().units)
    model = dataclasses.replace(with_states(), units=units)
    placement = plan(model, pod(memory=200), PlacementOptions(headroom=0.0, max_batch_size=8))

    assert (placement.kv_tokens, placement.state_slots) == (0, 8)
    assert "no KV cache, states of 8 sequences; longest sequence: 4 tokens" in table(placement)


def with_windows(window, **sizes):
    """The same without states, whose first two blocks keep a window of each sequence."""
    model = footprint(**sizes)
    units = tuple(
        dataclasses.replace(unit, kv_per_token=0, kv_windowed=MIB) if unit.block in (0, 1) else unit
        for unit in model.units
    )
    return dataclasses.replace(model, units=units, window=window, prefill_chunk=2)


@pytest.mark.parametrize(
    ("memory", "windows"),
    [
        (57 + 2 * 64 + 2 * 34, 16 * 2 + 2),  # 54 of weights, 3 of activations, 64 tokens
        (57 + 2 * 64 + 2 * 20, 9 * 2 + 2),  # what is left is for nine sequences
        (57 + 2 * 64 + 2 * 4, 2 + 2),
        (400, 64),  # for all that is cached
    ],
)
def test_windows_take_what_the_weights_leave(memory, windows):
    options = PlacementOptions(headroom=0.0, max_batch_size=64, max_concurrency=1)
    placement = plan(with_windows(2, max_model_len=64), pod(memory=memory), options)

    assert not placement.offloaded
    assert (placement.window, placement.window_tokens, placement.kv_tokens) == (2, windows, 64)
    assert placement.state_slots == 0  # short sequences share the windows, so more may run


def test_longer_sequences_and_more_of_them_fit_with_windows():
    whole, windowed = footprint(max_model_len=64), with_windows(2, max_model_len=64)
    memory = pod(memory=57 + 4 * 64)
    options = PlacementOptions(headroom=0.0, max_batch_size=4, max_concurrency=None)

    assert plan(whole, memory, options).kv_tokens == 64
    assert plan(windowed, memory, options).kv_tokens == 64  # 2 * 64 + 2 * (4 * 2 + 2)
    assert plan(windowed, pod(memory=57 + 4 * 64 + 20), options).kv_tokens == 2 * 64


def test_a_model_without_a_state_has_no_slots():
    placement = plan(footprint(), pod(memory=200), PlacementOptions(max_batch_size=64))

    assert placement.state_slots == 0


# Bulk work


def for_a_batch(memory, **options):
    """Return the plan of 54 MiB of weights, whose cache takes 16 MiB for each sequence."""
    given = {"headroom": 0.0, "max_batch_size": 64, "max_concurrency": None, "in_place": True}
    return plan(footprint(), pod(memory=memory), PlacementOptions(**given | options))


def test_a_batch_gets_the_memory_of_weights_if_some_are_streamed_anyway():
    # One sequence leaves a block to be streamed, of 10 MiB, through buffers.
    alone = for_a_batch(54 + 16 + 3 - 1)
    batch = for_a_batch(54 + 16 + 3 - 1, batch_concurrency=64)

    assert alone.offloaded
    assert alone.kv_tokens == 4
    assert batch.kv_tokens > alone.kv_tokens
    assert all(tier.budget is None or tier.planned <= tier.budget for tier in batch.tiers)
    assert for_a_batch(54 + 16 + 3 - 1, batch_concurrency=2).kv_tokens == 2 * 4


def test_a_batch_of_a_model_that_fits_streams_nothing():
    placement = for_a_batch(54 + 16 + 3 + 20, batch_concurrency=64)

    assert not placement.offloaded
    assert placement.kv_tokens == 2 * 4
