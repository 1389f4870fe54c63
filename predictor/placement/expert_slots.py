"""Share the memory that is left among the experts that are read one by one.

Slots are given where every dense part already has its place: first on the device that executes,
then in main memory on the way to a GPU. Each layer has as many as any other, up to its number of
experts, so that no layer waits for another's reads. More memory never takes a slot from a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from predictor.placement.demand import Demand
from predictor.placement.plan import ExpertSlots, Tier
from predictor.placement.tiers import Assignment, Budgets, fill_tiers, main_device

CACHE_FLOOR = 2
"""Slots of a layer for each expert that a token uses, below which few experts are still in a slot
when they are used again. KV cache for more sequences than was demanded takes no such slot."""


def share_slots(
    demand: Demand, assignment: Assignment, budgets: Budgets
) -> tuple[ExpertSlots, ...]:
    """Return the slots of each layer, in execution order; none if no experts are apart.

    Args:
        demand: The model and its load, all of which is placed before any slot.
        assignment: The device of each unit.
        budgets: Bytes of each tier.
    """
    layers, size = demand.footprint.experts_apart, demand.expert_slot
    if not layers:
        return ()
    counts = [layer.count for layer in layers]
    filled, main = fill_tiers(demand, assignment, budgets), main_device(assignment)
    is_dense = {tier: _holds_dense_parts(tier, assignment, main) for tier in (main, "cpu")}
    device = _share(counts, _slots_left(filled[main], size) if is_dense[main] else 0)
    is_waiting = main != "cpu" and is_dense["cpu"]
    host = _share(counts, _slots_left(filled["cpu"], size) if is_waiting else 0)
    return tuple(
        ExpertSlots(layer.module, layer.count, layer.routed, size, device_slots, host_slots)
        for layer, device_slots, host_slots in zip(layers, device, host, strict=True)
    )


def reserved_slots(demand: Demand, assignment: Assignment, budgets: Budgets) -> int:
    """Return the slots that KV cache for more sequences than demanded leaves alone.

    These are `CACHE_FLOOR` times the routed experts of each layer, and half of any further ones.
    """
    slots = share_slots(demand, assignment, budgets)
    total = sum(layer.device_slots for layer in slots)
    floor = sum(min(layer.count, CACHE_FLOOR * layer.routed) for layer in slots)
    return total - max(0, total - floor) // 2


def _holds_dense_parts(tier: str, assignment: Assignment, main: str) -> bool:
    """Return whether no dense part is on a slower tier than this one."""
    slower = {"disk"} if tier == "cpu" or main == "cpu" else {"cpu", "disk"}
    return slower.isdisjoint(assignment)


def _slots_left(tier: Tier, size: int) -> int:
    return max(0, (tier.budget or 0) - tier.planned) // size


def _share(counts: Sequence[int], slots: int) -> list[int]:
    """Share slots evenly among layers with these numbers of experts; the first get the rest.

    A layer with few experts leaves the slots that it cannot use to the others.
    """
    level = 0
    while level < max(counts) and sum(min(count, level + 1) for count in counts) <= slots:
        level += 1
    shares = [min(count, level) for count in counts]
    rest = slots - sum(shares)
    for index in [index for index, count in enumerate(counts) if count > level][:rest]:
        shares[index] += 1
    return shares
