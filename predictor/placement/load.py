"""How many sequences a plan is for, where that is not fixed.

The cache of tokens grows with the length of sequences, so a few long ones share it with many short
ones. A state has the same size whatever the length, and as many sequences run as have a slot. The
same number of sequences has a full window each; short ones share these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from predictor.placement.decision import Decision, decide, is_offloaded
from predictor.placement.demand import Demand
from predictor.placement.expert_slots import reserved_slots, share_slots
from predictor.placement.plan import PlacementOptions
from predictor.placement.tiers import Budgets, fits

STATE_SLOTS = 16
"""Sequences whose states and windows are planned for at the cost of resident weights. A pass over
offloaded weights serves all of them, so that many are worth more than the weights that would stay.
"""


def decide_for_states(
    demand: Demand, budgets: Budgets, options: PlacementOptions
) -> Decision | None:
    """Return the decision for as many states and windows as are worth their memory.

    The number is `STATE_SLOTS`; fewer if nothing is offloaded then, or if no more fit. None is
    returned if nothing fits.
    """
    fallback = None
    for slots in _slot_counts(demand, options.max_batch_size):
        chosen = replace(demand, state_slots=slots)
        decision = decide(chosen, budgets, options.device_map, expert_slots=options.expert_slots)
        if decision is not None and not is_offloaded(decision):
            return decision
        fallback = fallback or decision
    return fallback


def with_most(
    decision: Decision,
    budgets: Budgets,
    field: Literal["concurrency", "state_slots"],
    most: int,
) -> Decision:
    """Return the same assignment for as many sequences, up to `most`, as there is memory for.

    If experts are read one by one, their slots get part of the memory, see `reserved_slots`.

    Args:
        decision: The assignment.
        budgets: Bytes of each tier.
        field: The number that grows: sequences of full length, or those with states and windows.
        most: The most sequences.
    """
    reserved = reserved_slots(decision.demand, decision.assignment, budgets)

    def is_possible(demand: Demand) -> bool:
        slots = share_slots(demand, decision.assignment, budgets)
        is_cached = sum(layer.device_slots for layer in slots) >= reserved
        return is_cached and fits(demand, decision.assignment, budgets)

    low: int = getattr(decision.demand, field)
    high = max(low, most)
    while low < high:
        middle = (low + high + 1) // 2
        if is_possible(_changed(decision.demand, field, middle)):
            low = middle
        else:
            high = middle - 1
    return replace(decision, demand=_changed(decision.demand, field, low))


def for_batch(
    decision: Decision, demand: Demand, budgets: Budgets, options: PlacementOptions
) -> Decision:
    """Return a decision for a batch of bulk work, whose cache is worth more than weights that stay.

    A pass over offloaded weights takes as long as it takes to read them, and gives a token to each
    sequence. With `n` sequences more `n` times their cache is read; `n / (weights + n * cache)`
    grows with `n`. So the most sequences are best, as long as weights are streamed anyway. Experts
    that are read one by one keep their slots.

    Args:
        decision: The decision for any requests.
        demand: The demand of one sequence.
        budgets: Bytes of each tier.
        options: The bounds on the plan.
    """
    best, low, high = decision, decision.demand.concurrency, options.batch_concurrency
    if not is_offloaded(decision) or decision.demand.footprint.experts_apart:
        return decision
    while low < high:
        middle = (low + high + 1) // 2
        larger = decide_for_states(_changed(demand, "concurrency", middle), budgets, options)
        if larger is None:
            high = middle - 1
        else:
            best, low = larger, middle
    return best


def _changed(demand: Demand, field: Literal["concurrency", "state_slots"], number: int) -> Demand:
    if field == "concurrency":
        return replace(demand, concurrency=number)
    return replace(demand, state_slots=number)


def _slot_counts(demand: Demand, most: int) -> Iterator[int]:
    """Yield the numbers of states and windows to plan for, the preferred one first."""
    slots = min(most, STATE_SLOTS) if demand.footprint.has_slots else 0
    while slots > demand.concurrency:
        yield slots
        slots //= 2
    yield demand.concurrency
