"""Assign units to devices: the only module that decides which of them stay resident.

1. `search` places the units in order: first those outside of blocks, smallest first, then the
   blocks. Each goes on a GPU, else in main memory, else on disk. So more memory on a tier never
   moves a unit to a slower one, as long as blocks are streamed in one way.
2. `spread` distributes the resident blocks evenly between the streamed ones, so that reading
   overlaps computing.

`tiers` counts the bytes that an assignment takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from predictor.placement.demand import Demand
from predictor.placement.tiers import Assignment, Budgets, fill_tiers, fits, main_device
from predictor.placement.units import PlacementUnit

_STEPS = 50
"""Halvings in a search for a number of bytes: more than the bits of any memory size."""


def search(demand: Demand, budgets: Budgets, strategy: str) -> Assignment | None:
    """Return the assignment with most units on the fastest tiers; None if nothing fits.

    Args:
        demand: The model and its load.
        budgets: Bytes of each tier.
        strategy: How several GPUs share the units that are placed on them.
    """
    units = demand.footprint.units
    on_gpus = _most_on_gpus(demand, budgets)
    if on_gpus and len(budgets.gpus) > 1 and strategy != "sequential":
        on_gpus = _balance(demand, budgets, len(on_gpus), low_first=strategy == "balanced_low_0")
    spilled = units[len(on_gpus) :]
    assignment = on_gpus + _spill(demand, budgets, spilled, executes=not on_gpus)
    return assignment if fits(demand, assignment, budgets) else None


def spread(demand: Demand, assignment: Assignment, budgets: Budgets) -> Assignment:
    """Return an assignment with as much on each tier and the resident blocks evenly distributed.

    So a block is read while the resident ones before it compute. Blocks on further GPUs stay behind
    those that the main device executes. If blocks differ in size, so that a tier would hold more or
    less than before, the assignment is returned as it is.
    """
    main = main_device(assignment)
    blocks = [index for index, unit in enumerate(demand.footprint.units) if unit.is_block]
    on = {
        name: [name for i in blocks if assignment[i] == name] for name in dict.fromkeys(assignment)
    }
    resident = on.pop(main, [])
    streamed = _interleave(on.pop("disk", []), on.pop("cpu", []))
    order = [*_interleave(streamed, resident), *itertools.chain.from_iterable(on.values())]
    moved = list(assignment)
    for index, device in zip(blocks, order, strict=True):
        moved[index] = device
    before, after = (fill_tiers(demand, tuple(one), budgets) for one in (assignment, moved))
    is_equal = all(after[name].weights == before[name].weights for name in ("cpu", "disk"))
    return tuple(moved) if is_equal and fits(demand, tuple(moved), budgets) else assignment


def _interleave(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Merge two sequences so that each is distributed evenly; the first one begins."""
    ranked = [
        ((index + 1) / len(names), order, name)
        for order, names in enumerate((first, second))
        for index, name in enumerate(names)
    ]
    return [name for _, _, name in sorted(ranked)]


def _most_on_gpus(demand: Demand, budgets: Budgets) -> Assignment:
    """Place as many units as fit on GPUs; none if no GPU can hold the offloaded units' buffers."""
    for count in range(len(demand.footprint.units), 0, -1):
        assignment = _fill(demand, budgets.gpus, count)
        if assignment is not None:
            return assignment
    return ()


def _fill(demand: Demand, caps: Mapping[str, int], count: int) -> Assignment | None:
    """Place the first units on the GPUs in order, each up to its cap; None if they do not fit.

    A GPU at the front is skipped only if it cannot hold the first units.
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
    """Place the first units; the first GPU also holds the buffers for the remaining ones."""
    units, streamed = demand.footprint.units[:count], demand.footprint.units[count:]
    used = demand.activations + demand.device_buffer_bytes(streamed)
    used += sum(unit.stays + demand.kv_bytes(unit) for unit in streamed)
    devices: list[str] = []
    index = 0
    for unit in units:
        need = demand.resident_bytes(unit)
        while used + need > caps[names[index]]:
            index += 1
            if index == len(names) or not devices:
                return None
            used = demand.activations
        used += need
        devices.append(names[index])
    return tuple(devices)


def _balance(demand: Demand, budgets: Budgets, count: int, *, low_first: bool) -> Assignment:
    """Place the first units evenly: under the lowest cap with which they all still fit."""
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
    """Place as many of these units as fit in main memory, the first ones, and the rest on disk."""
    fixed = demand.activations + demand.kernels if executes else 0
    fixed += sum(unit.stays + demand.kv_bytes(unit) for unit in units) if executes else 0
    weights = sum(unit.weights for unit in units)
    for count in range(len(units), -1, -1):
        waiting, resident = ((), units[:count]) if executes else (units[:count], ())
        buffers = demand.host_buffer_bytes(
            units[count:], executes=executes, waiting=waiting, resident=resident
        )
        if fixed + weights + buffers <= budgets.cpu:
            return ("cpu",) * count + ("disk",) * (len(units) - count)
        weights -= units[count - 1].weights if count else 0
    return ("disk",) * len(units)
