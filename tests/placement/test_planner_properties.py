"""What holds of every plan, for models and pods that hypothesis makes up.

Sizes are small integers of bytes; the refusal is checked against a search through every placement
that keeps the order of units on the order of devices.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import DoesNotFit
from predictor.placement.assignment import search, spread
from predictor.placement.demand import Demand
from predictor.placement.device_map import STRATEGIES
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.placement.tiers import Budgets, fits
from predictor.placement.units import Footprint, PlacementUnit
from predictor.pod.resources import Accelerator, Memory, PodResources

SIZES = st.integers(0, 12)


@st.composite
def footprints(draw, *, by_block=False):
    count = draw(st.integers(1, 5))
    others = draw(st.integers(0, min(2, count - 1)))
    units = []
    for index in range(count):
        weights = draw(SIZES)
        is_block = index >= others
        names = (f"u{index}", f"tied{index}") if draw(st.booleans()) else (f"u{index}",)
        units.append(
            PlacementUnit(
                names,
                index - others if is_block else None,
                weights,
                draw(st.integers(0, 2)),
                draw(st.integers(0, weights)),
                kv_per_token=draw(st.integers(0, 2)) if is_block else 0,
                kv_fixed=draw(st.integers(0, 3)) if is_block else 0,
            )
        )
    return Footprint(
        "Made",
        "float32",
        tuple(units),
        max_model_len=draw(st.integers(1, 3)),
        activations=draw(st.integers(0, 4)),
        needs_cast=draw(st.booleans()),
        needs_conversion=False,
        probed=True,
        by_block=by_block and draw(st.booleans()),
    )


@st.composite
def pods(draw):
    gpus = draw(st.lists(st.integers(0, 40), max_size=3))
    return PodResources(
        tuple(Accelerator(i, "cuda", "made", size, size) for i, size in enumerate(gpus)),
        Memory(None, draw(st.integers(0, 60)), "made"),
        None,
    )


@st.composite
def options(draw):
    return PlacementOptions(
        device_map=draw(st.sampled_from(STRATEGIES)),
        max_concurrency=draw(st.integers(1, 2)),
        headroom=0.0,
        disk=draw(st.none() | st.integers(0, 40)),
    )


def attempt(model, resources, requested):
    try:
        return plan(model, resources, requested)
    except DoesNotFit:
        return None


def ordered_placements(count, devices):
    """Every placement whose devices come in the order of their speed, some of them left out."""
    return itertools.combinations_with_replacement(devices, count)


@given(footprints(by_block=True), pods(), options())
def test_a_plan_is_never_over_a_budget(model, resources, requested):
    placement = attempt(model, resources, requested)

    for tier in placement.tiers if placement else ():
        assert tier.budget is None or tier.planned <= tier.budget
        assert tier.owned is None or tier.planned + tier.reserve <= tier.owned


@given(footprints(by_block=True), pods(), options())
def test_every_unit_is_placed_exactly_once_and_every_byte_is_counted(model, resources, requested):
    placement = attempt(model, resources, requested)
    if placement is None:
        return

    assert list(placement.device_map) == [name for unit in model.units for name in unit.names]
    assert sum(tier.units for tier in placement.tiers) == len(model.units)
    everything = sum(unit.weights + unit.buffers for unit in model.units)
    assert sum(tier.weights for tier in placement.tiers) == everything
    sequence = sum(u.kv_fixed + u.kv_per_token * model.max_model_len for u in model.units)
    assert sum(tier.kv for tier in placement.tiers) == requested.max_concurrency * sequence


@given(footprints(), pods(), options())
def test_tied_names_are_on_one_device(model, resources, requested):
    placement = attempt(model, resources, requested)

    for unit in model.units if placement else ():
        assert len({placement.device_map[name] for name in unit.names}) == 1


@given(footprints(), pods(), options())
def test_faster_tiers_come_first_and_spreading_moves_blocks_alone(model, resources, requested):
    gpus = {str(gpu.index): gpu.free for gpu in resources.accelerators}
    budgets = Budgets(gpus, resources.memory.available, requested.disk)
    demand = Demand(model, requested.max_concurrency)
    assignment = search(demand, budgets, requested.device_map)
    if assignment is None:
        return
    mixed = spread(demand, assignment, budgets)

    order = [[*gpus, "cpu", "disk"].index(device) for device in assignment]
    assert order == sorted(order)
    assert sorted(mixed) == sorted(assignment)
    for unit, before, after in zip(model.units, assignment, mixed, strict=True):
        assert before == after or unit.is_block


@settings(max_examples=300)
@given(footprints(by_block=True), pods(), options())
def test_it_is_refused_exactly_where_no_ordered_placement_fits(model, resources, requested):
    gpus = {str(gpu.index): gpu.free for gpu in resources.accelerators}
    budgets = Budgets(gpus, resources.memory.available, requested.disk)
    demand = Demand(replace(model, by_block=False), requested.max_concurrency)
    placements = ordered_placements(len(model.units), [*gpus, "cpu", "disk"])
    possible = any(fits(demand, assignment, budgets) for assignment in placements)

    assert (attempt(model, resources, requested) is not None) == possible


@settings(max_examples=300)
@given(footprints(), pods(), options())
def test_no_ordered_placement_has_more_on_the_gpus(model, resources, requested):
    placement = attempt(model, resources, requested)
    if placement is None:
        return
    gpus = {str(gpu.index): gpu.free for gpu in resources.accelerators}
    budgets = Budgets(gpus, resources.memory.available, requested.disk)
    demand = Demand(model, requested.max_concurrency)
    planned = sum(tier.units for tier in placement.tiers if tier.name in gpus)

    for other in ordered_placements(len(model.units), [*gpus, "cpu", "disk"]):
        if fits(demand, other, budgets):
            assert sum(device in gpus for device in other) <= planned


def cumulative(model, placement):
    """Bytes of weights on each tier or a faster one; several GPUs are one tier."""
    on = {"gpu": 0, "cpu": 0, "disk": 0}
    for unit in model.units:
        device = placement.device_map[unit.names[0]]
        on["gpu" if isinstance(device, int) else device] += unit.weights
    return list(itertools.accumulate(on.values()))


@settings(max_examples=300)
@given(footprints(), pods(), options(), st.integers(1, 30), st.integers(0, 4))
def test_more_memory_never_moves_weights_to_a_slower_tier(model, resources, requested, more, which):
    before = attempt(model, resources, requested)
    if before is None:
        return
    gpus, memory = list(resources.accelerators), resources.memory
    if which < len(gpus):
        gpus[which] = replace(gpus[which], free=gpus[which].free + more)
    elif which == 3:
        memory = replace(memory, available=memory.available + more)
    elif requested.disk is not None:
        requested = replace(requested, disk=requested.disk + more)
    after = attempt(model, PodResources(tuple(gpus), memory, None), requested)

    assert after is not None
    pairs = zip(cumulative(model, before), cumulative(model, after), strict=True)
    assert all(less <= most for less, most in pairs)


@settings(max_examples=200)
@given(footprints(), pods(), options())
def test_balancing_never_fills_a_gpu_more_than_filling_them_in_order(model, resources, requested):
    even = attempt(model, resources, replace(requested, device_map="balanced"))
    order = attempt(model, resources, replace(requested, device_map="sequential"))
    if even is None or order is None:
        assert even is order
        return

    def fullest(placement):
        return max((t.planned for t in placement.tiers if t.name.isdigit()), default=0)

    assert fullest(even) <= fullest(order)
    assert cumulative(model, even) == cumulative(model, order)
