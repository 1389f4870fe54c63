"""Decide which units stay resident: the search for an assignment, and the bytes that it takes.

All of it is arithmetic over integers. An assignment is a tuple of device names, one for each unit.
`search` places the units outside of blocks first, the smallest first, and then the blocks: on GPUs,
then in main memory, then on disk. So more memory on a tier never moves a unit to a slower one, as
long as blocks are streamed in one way. `spread` then distributes the resident blocks between the
streamed ones, so that reading overlaps computing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from predictor.placement.demand import Demand
from predictor.placement.plan import Tier
from predictor.placement.units import PlacementUnit

Assignment = tuple[str, ...]
_STEPS = 50
"""Halvings when searching a number of bytes: more than the bits of any memory size."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes that may be planned on each tier.

    Attributes:
        gpus: By name, in order; empty without any.
        cpu: Main memory.
        disk: The disk tier; None where it is not bounded.
    """

    gpus: Mapping[str, int]
    cpu: int
    disk: int | None


def tiers(demand: Demand, assignment: Assignment, budgets: Budgets) -> dict[str, Tier]:
    """Returns what an assignment puts on each tier; `owned` is left to the caller.

    Parts in main memory execute there only where no part is on a GPU; else they, like parts on
    disk, are streamed to the first GPU in use (`accelerate.dispatch_model`'s main device), which
    then holds their KV cache and computed buffers.
    """
    bounds: dict[str, int | None] = {**budgets.gpus, "cpu": budgets.cpu, "disk": budgets.disk}
    main = main_device(assignment)
    sums = {name: _Sum() for name in bounds}
    for unit, device in zip(demand.footprint.units, assignment, strict=True):
        runs_on = device if device in budgets.gpus else main
        sums[device].weights += unit.weights
        sums[device].units += 1
        sums[runs_on].weights += unit.buffers
        sums[runs_on].kv += demand.kv(unit)
        sums[runs_on].executes = True
    _add_staging(demand, assignment, sums, main)
    return {
        name: Tier(
            name=name,
            owned=None,
            budget=bounds[name],
            weights=total.weights,
            kv=total.kv,
            staging=total.staging,
            activations=demand.activations if total.executes else 0,
            units=total.units,
        )
        for name, total in sums.items()
    }


@dataclass(slots=True)
class _Sum:
    weights: int = 0
    kv: int = 0
    staging: int = 0
    units: int = 0
    executes: bool = False


def _add_staging(demand: Demand, assignment: Assignment, sums: dict[str, _Sum], main: str) -> None:
    placed = list(zip(demand.footprint.units, assignment, strict=True))
    on_disk = [unit for unit, device in placed if device == "disk"]
    waiting = [unit for unit, device in placed if device == "cpu" and main != "cpu"]
    if main != "cpu":
        sums[main].staging = demand.streaming_bytes(on_disk + waiting)
    sums["cpu"].staging = demand.reading_bytes(on_disk, executes=main == "cpu", waiting=waiting)


def main_device(assignment: Assignment) -> str:
    """Returns where offloaded parts execute: the first GPU in use, else main memory's processor."""
    return min(set(assignment) - {"cpu", "disk"}, key=int, default="cpu")


def fits(placed: Mapping[str, Tier]) -> bool:
    """Whether no tier is over its budget."""
    return all(
        tier.budget is None or tier.planned <= max(0, tier.budget) for tier in placed.values()
    )


def search(demand: Demand, budgets: Budgets, strategy: str) -> Assignment | None:
    """Returns the assignment with most on the fastest tiers; None where nothing fits.

    Args:
        demand: What is to be placed.
        budgets: Bytes of each tier.
        strategy: How several GPUs share what is placed on them.
    """
    units = demand.footprint.units
    on_gpus = _most_on_gpus(demand, budgets)
    if on_gpus and len(budgets.gpus) > 1 and strategy != "sequential":
        on_gpus = _balance(demand, budgets, len(on_gpus), low_first=strategy == "balanced_low_0")
    spilled = units[len(on_gpus) :]
    assignment = on_gpus + _spill(demand, budgets, spilled, executes=not on_gpus)
    return assignment if fits(tiers(demand, assignment, budgets)) else None


def spread(demand: Demand, assignment: Assignment, budgets: Budgets) -> Assignment:
    """Returns an assignment of as much, with streamed blocks evenly between those that stay.

    So a block is read while the ones before it compute. What is on further GPUs stays behind what
    the main device executes. Where blocks differ in size and no tier would hold the same, the
    assignment is returned as it is.
    """
    main = main_device(assignment)
    blocks = [index for index, unit in enumerate(demand.footprint.units) if unit.is_block]
    on = {
        name: [name for i in blocks if assignment[i] == name] for name in dict.fromkeys(assignment)
    }
    stay = on.pop(main, [])
    streamed = _merged(on.pop("disk", []), on.pop("cpu", []))
    mixed = [*_merged(streamed, stay), *itertools.chain.from_iterable(on.values())]
    moved = list(assignment)
    for index, device in zip(blocks, mixed, strict=True):
        moved[index] = device
    before, after = (tiers(demand, tuple(one), budgets) for one in (assignment, moved))
    is_alike = all(after[name].weights == before[name].weights for name in ("cpu", "disk"))
    return tuple(moved) if is_alike and fits(after) else assignment


def _merged(some: Sequence[str], others: Sequence[str]) -> list[str]:
    """Both in one line, each as evenly spread as it can be, beginning with the first."""
    places = [
        ((turn + 1) / len(names), order, name)
        for order, names in enumerate((some, others))
        for turn, name in enumerate(names)
    ]
    return [name for _, _, name in sorted(places)]


def _most_on_gpus(demand: Demand, budgets: Budgets) -> Assignment:
    """Puts as many units as fit on GPUs; none where no GPU can hold what executing there needs."""
    for count in range(len(demand.footprint.units), 0, -1):
        assignment = _fill(demand, budgets.gpus, count)
        if assignment is not None:
            return assignment
    return ()


def _fill(demand: Demand, caps: Mapping[str, int], count: int) -> Assignment | None:
    """Puts the first units on the GPUs in order, each GPU up to its cap; None if they do not fit.

    GPUs are left out at the front only where the first cannot hold its part.
    """
    names = list(caps)
    for start in range(len(names)):
        assignment = _fill_in_order(demand, caps, names[start:], count)
        if assignment is not None:
            return assignment
    return None


def _fill_in_order(
    demand: Demand, caps: Mapping[str, int], names: Sequence[str], count: int
) -> Assignment | None:
    """The first GPU holds besides what the remaining units need to be streamed through it."""
    units, streamed = demand.footprint.units[:count], demand.footprint.units[count:]
    used = demand.activations + demand.streaming_bytes(streamed)
    used += sum(unit.buffers + demand.kv(unit) for unit in streamed)
    devices: list[str] = []
    index = 0
    for unit in units:
        need = demand.resident(unit)
        while used + need > caps[names[index]]:
            index += 1
            if index == len(names) or not devices:
                return None
            used = demand.activations
        used += need
        devices.append(names[index])
    return tuple(devices)


def _balance(demand: Demand, budgets: Budgets, count: int, *, low_first: bool) -> Assignment:
    """Spreads the first units evenly: the lowest cap under which they all still fit."""
    caps = dict(budgets.gpus)
    first = next(iter(caps))
    if low_first:
        caps[first] = _lowest_cap(demand, caps, count, only=first)
    lowest = _lowest_cap(demand, caps, count, only=None)
    return _fill(demand, _capped(caps, lowest, None), count) or ()


def _lowest_cap(demand: Demand, caps: Mapping[str, int], count: int, only: str | None) -> int:
    low, high = 0, max(caps.values())
    for _ in range(_STEPS):
        middle = (low + high) // 2
        if _fill(demand, _capped(caps, middle, only), count) is None:
            low = middle
        else:
            high = middle
    return high


def _capped(caps: Mapping[str, int], cap: int, only: str | None) -> dict[str, int]:
    return {name: min(own, cap) if only in (None, name) else own for name, own in caps.items()}


def _spill(
    demand: Demand, budgets: Budgets, units: Sequence[PlacementUnit], *, executes: bool
) -> Assignment:
    """Puts as many of these units as fit in main memory, the first ones, and the rest on disk."""
    fixed = demand.activations if executes else 0
    fixed += sum(unit.buffers + demand.kv(unit) for unit in units) if executes else 0
    weights = sum(unit.weights for unit in units)
    for count in range(len(units), -1, -1):
        waiting = () if executes else units[:count]
        buffers = demand.reading_bytes(units[count:], executes=executes, waiting=waiting)
        if fixed + weights + buffers <= budgets.cpu:
            return ("cpu",) * count + ("disk",) * (len(units) - count)
        weights -= units[count - 1].weights if count else 0
    return ("disk",) * len(units)
