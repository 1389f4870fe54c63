"""Decide how a model is offloaded: in experts, whole blocks or modules, and what goes where.

`decide` follows an explicit device map, or takes the best assignment for a strategy. Experts that
are read one by one have no device of their own: the dense part of every block is placed before any
of them, and `expert_slots` gives them the memory that is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from predictor.placement.assignment import search, spread
from predictor.placement.demand import Demand
from predictor.placement.device_map import STRATEGIES, explicit_assignment
from predictor.placement.tiers import Assignment, Budgets, fits, main_device


@dataclass(frozen=True, slots=True)
class Decision:
    """An assignment that fits.

    Attributes:
        demand: The demand that it satisfies; its footprint says whether blocks are streamed whole.
        assignment: The device of each unit.
    """

    demand: Demand
    assignment: Assignment


def decide(
    demand: Demand,
    budgets: Budgets,
    device_map: str | dict[str, str],
    *,
    expert_slots: bool = False,
) -> Decision | None:
    """Return the assignment of a device map; None if nothing fits.

    Of the ways to offload, the first with which a GPU can compute is taken: experts one by one
    beside whole dense parts, or beside these module by module; then blocks whole; then blocks
    module by module. Last come modules, with experts apart or not, through one buffer.

    Args:
        demand: The model and its load.
        budgets: Bytes of each tier.
        device_map: A strategy, or the device of each part.
        expert_slots: Whether experts may be placed apart from their blocks. They are if the model
            does not fit without offloading, and if a strategy decides.

    Raises:
        ConfigurationError: The map names a device or a module that is not there.
    """
    fallback = None
    for decision in _candidates(demand, budgets, device_map, expert_slots):
        if decision is not None and _is_on_gpu(decision, budgets):
            return decision
        fallback = fallback or decision
    return fallback


def can_place(
    demand: Demand, budgets: Budgets, strategy: str, *, expert_slots: bool = False
) -> bool:
    """Return whether a strategy finds any assignment, however slow."""
    least = demand.with_one_buffer()
    if search(least, budgets, strategy) is not None:
        return True
    return (
        expert_slots and _place_experts_apart(demand, budgets, Demand.with_one_buffer) is not None
    )


def _candidates(
    demand: Demand, budgets: Budgets, device_map: str | dict[str, str], expert_slots: bool
) -> Iterator[Decision | None]:
    """Yield the decision for each way to offload, the preferred one first."""
    whole = _decide(demand, budgets, device_map)
    if whole is not None and not is_offloaded(whole):
        yield whole
    has_slots = expert_slots and isinstance(device_map, str) and device_map in STRATEGIES
    if has_slots:
        yield _place_experts_apart(demand, budgets)
        yield _place_experts_apart(demand, budgets, Demand.by_module)
    yield whole
    if demand.footprint.by_block:
        yield _decide(demand.by_module(), budgets, device_map)
    if has_slots:
        yield _place_experts_apart(demand, budgets, Demand.with_one_buffer)
    yield _decide(demand.with_one_buffer(), budgets, device_map)


def _decide(demand: Demand, budgets: Budgets, device_map: str | dict[str, str]) -> Decision | None:
    explicit = explicit_assignment(demand.footprint, device_map, budgets)
    if explicit is not None:
        return Decision(demand, explicit) if fits(demand, explicit, budgets) else None
    assignment = search(demand, budgets, str(device_map))
    if assignment is None:
        return None
    return Decision(demand, spread(demand, assignment, budgets))


def _is_on_gpu(decision: Decision, budgets: Budgets) -> bool:
    """Return whether a GPU computes, or there is none."""
    return main_device(decision.assignment) in budgets.gpus or not budgets.gpus


def is_offloaded(decision: Decision) -> bool:
    """Return whether a unit is stored on another device than it executes on."""
    elsewhere = {"disk"} if main_device(decision.assignment) == "cpu" else {"cpu", "disk"}
    return not elsewhere.isdisjoint(decision.assignment)


def _place_experts_apart(
    demand: Demand, budgets: Budgets, way: Callable[[Demand], Demand] | None = None
) -> Decision | None:
    """Return the decision that reads experts one by one, to the first GPU or to main memory.

    Further GPUs hold as many of the last blocks as fit there whole, with all of their experts.

    Args:
        demand: The model and its load.
        budgets: Bytes of each tier.
        way: Has dense parts streamed in another way than whole.
    """
    apart = demand.by_expert()
    if apart is None:
        return None
    apart = apart if way is None else way(apart)
    further = _fill_further_gpus(demand, budgets)
    return (further and _place_beside(demand, apart, budgets, further)) or _place_beside(
        demand, apart, budgets, ()
    )


def _place_beside(
    demand: Demand, apart: Demand, budgets: Budgets, further: Assignment
) -> Decision | None:
    """Return the decision with the last blocks on these further GPUs, and experts of the others."""
    cut = len(demand.footprint.units) - len(further)
    first, last = apart.footprint.units[:cut], demand.footprint.units[cut:]
    beginning = replace(apart, footprint=replace(apart.footprint, units=first))
    assignment = search(beginning, _without_further_gpus(budgets), "sequential")
    if assignment is None or (further and main_device(assignment) not in budgets.gpus):
        return None
    whole = tuple(replace(unit, experts=None) for unit in last)
    mixed = replace(apart, footprint=replace(apart.footprint, units=first + whole))
    assignment += further
    if not mixed.footprint.experts_apart or not fits(mixed, assignment, budgets):
        return None
    return Decision(mixed, spread(mixed, assignment, budgets))


def _fill_further_gpus(demand: Demand, budgets: Budgets) -> Assignment:
    """Return GPUs other than the first for as many of the last blocks as they hold whole."""
    left = {name: size - demand.activations for name, size in budgets.gpus.items()}
    names = list(left)[1:]
    devices: list[str] = []
    for unit in reversed(demand.footprint.units):
        need = demand.resident_bytes(unit)
        while names and need > left[names[-1]]:
            names.pop()
        if not names or not unit.is_block:
            break
        left[names[-1]] -= need
        devices.insert(0, names[-1])
    return tuple(devices)


def _without_further_gpus(budgets: Budgets) -> Budgets:
    return replace(budgets, gpus=dict(itertools.islice(budgets.gpus.items(), 1)))
