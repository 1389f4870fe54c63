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


def test_a_model_without_a_state_has_no_slots():
    placement = plan(footprint(), pod(memory=200), PlacementOptions(max_batch_size=64))

    assert placement.state_slots == 0
