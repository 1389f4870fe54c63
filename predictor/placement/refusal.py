"""Explain why a model does not fit, with the smallest changes that would make it fit.

Each remedy is found by planning again with more of one tier, a shorter context or fewer sequences,
so it is true by construction. Whether a change is enough is decided in `decision`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from predictor.errors import DoesNotFit
from predictor.placement.decision import can_place
from predictor.placement.demand import Demand
from predictor.placement.plan import PlacementOptions
from predictor.placement.tiers import Assignment, Budgets, fill_tiers, fits
from predictor.placement.units import describe_dtype
from predictor.quantity import format_bytes

_GRAIN = 1024**2
"""Bytes to which remedies are rounded up: 1 MiB."""

_SHORTEST = 2
"""The least value of `max_model_len`: a token of prompt and one of reply."""

_TITLES = {
    "gpu": "GPU memory",
    "cpu": "main memory",
    "disk": "space on the offload volume (--offload_folder)",
}


@dataclass(frozen=True, slots=True)
class _Shortfall:
    """Bytes that these devices (several GPUs, or one device) would each need in addition."""

    devices: tuple[str, ...]
    extra: int

    @property
    def tier(self) -> str:
        return self.devices[0] if self.devices[0] in _TITLES else "gpu"


@dataclass(frozen=True, slots=True)
class _Case:
    demand: Demand
    budgets: Budgets
    uncapped: Budgets
    options: PlacementOptions
    explicit: Assignment | None

    def feasible(self, *, budgets: Budgets | None = None, demand: Demand | None = None) -> bool:
        budgets, demand = budgets or self.budgets, demand or self.demand
        if self.explicit is not None:
            return fits(demand.with_one_buffer(), self.explicit, budgets)
        strategy, expert_slots = str(self.options.device_map), self.options.expert_slots
        return can_place(demand, budgets, strategy, expert_slots=expert_slots)

    @property
    def has_expert_slots(self) -> bool:
        """Whether the experts could be read one by one."""
        is_possible = self.explicit is None and self.options.expert_slots
        return is_possible and self.demand.by_expert() is not None

    def budget(self, devices: tuple[str, ...]) -> int:
        return min(_bound(self.budgets, device) or 0 for device in devices)


def does_not_fit(
    demand: Demand,
    budgets: Budgets,
    uncapped: Budgets,
    options: PlacementOptions,
    explicit: Assignment | None,
) -> DoesNotFit:
    """Return the error for a demand that no assignment within the budgets satisfies.

    Args:
        demand: The model and its load.
        budgets: Bytes that may be planned on each tier.
        uncapped: The same without `max_memory`.
        options: The placement options.
        explicit: The assignment that the user stated; None for a strategy.
    """
    case = _Case(demand, budgets, uncapped, options, explicit)
    if explicit is None:
        shortfalls = _alternatives(case)
        remedies = [_more_memory(case, shortfall) for shortfall in shortfalls]
    else:
        shortfalls = _overfilled(case, explicit)
        remedies = [" and ".join(_more_memory(case, shortfall) for shortfall in shortfalls)]
    return _error(case, shortfalls[0], (*remedies, *_less(case)))


def _error(case: _Case, shortfall: _Shortfall, remedies: tuple[str, ...]) -> DoesNotFit:
    footprint, budget = case.demand.footprint, case.budget(shortfall.devices)
    needed, usable = budget + shortfall.extra, max(0, budget)
    reserve = case.options.reserve if shortfall.tier == "cpu" else 0
    beside = f" beside a reserve of {format_bytes(reserve)}" if reserve else ""
    served_as = describe_dtype(footprint.dtype, footprint.quantization)
    experts = ", even if none of its experts stays in memory" if case.has_expert_slots else ""
    return DoesNotFit(
        f"{footprint.architecture} in {served_as} does not fit{experts}: "
        f"{_TITLES[shortfall.tier]} lacks "
        f"{format_bytes(needed - usable)} (needs {format_bytes(needed)}, can use "
        f"{format_bytes(usable)}{beside}); it would fit with {' or '.join(remedies)}.",
        tier=shortfall.tier,
        needed=needed,
        available=usable,
        remedies=remedies,
    )


def _overfilled(case: _Case, explicit: Assignment) -> list[_Shortfall]:
    """Return the shortfall of each device that a stated assignment fills over its budget."""
    filled = fill_tiers(case.demand.with_one_buffer(), explicit, case.budgets).values()
    return [
        _Shortfall((tier.name,), tier.planned - tier.budget)
        for tier in filled
        if tier.budget is not None and tier.planned > tier.budget
    ]


def _alternatives(case: _Case) -> list[_Shortfall]:
    """Return for each tier the smallest extra bytes, to the MiB, that alone make the model fit.

    There is always one: enough main memory holds and executes the whole model.
    """
    shortfalls = []
    for devices in (tuple(case.budgets.gpus), ("cpu",), ("disk",)):
        if devices and _bound(case.budgets, devices[0]) is not None:
            extra = _smallest_extra(case, devices)
            shortfalls += [] if extra is None else [_Shortfall(devices, extra)]
    return shortfalls


def _smallest_extra(case: _Case, devices: tuple[str, ...]) -> int | None:
    def feasible(grains: int) -> bool:
        return case.feasible(budgets=_more(case.budgets, devices, grains * _GRAIN))

    units = case.demand.footprint.units
    whole = case.demand.with_one_buffer()
    all_in_one = fill_tiers(whole, ("cpu",) * len(units), Budgets({}, 0, None))["cpu"]
    high = (4 * all_in_one.planned + abs(case.budget(devices))) // _GRAIN + 1
    if not feasible(high):
        return None
    return (high - _most(lambda less: feasible(high - less), high)) * _GRAIN


def _less(case: _Case) -> list[str]:
    """Return the remedies that take less KV cache, or no draft model."""
    demand, footprint = case.demand, case.demand.footprint

    def shorter(tokens: int) -> bool:
        cut = replace(footprint, max_model_len=tokens)
        return case.feasible(demand=replace(demand, footprint=cut))

    def alone() -> bool:
        return case.feasible(demand=replace(demand, footprint=footprint.without_draft_model()))

    def fewer(sequences: int) -> bool:
        return case.feasible(demand=replace(demand, concurrency=sequences))

    tokens, sequences = _most(shorter, footprint.max_model_len), _most(fewer, demand.concurrency)
    remedies = []
    if tokens >= _SHORTEST:
        remedies.append(f"max_model_len {tokens} instead of {footprint.max_model_len}")
    if sequences:
        remedies.append(f"max_concurrency {sequences} instead of {demand.concurrency}")
    if footprint.draft_model is not None and case.explicit is None and alone():
        remedies.append("no draft_model_dir")
    return remedies


def _most(feasible: Callable[[int], bool], high: int) -> int:
    """Return the largest number below `high` that is feasible; 0 if no positive one is."""
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if feasible(middle) else (low, middle)
    return low


def _more_memory(case: _Case, shortfall: _Shortfall) -> str:
    """Name a remedy that the user controls: `max_memory`, the resources of the pod, or both.

    Amounts are rounded up, so that they are enough.
    """
    targets = {
        device: (_bound(case.budgets, device) or 0) + shortfall.extra
        for device in shortfall.devices
    }
    caps = case.options.max_memory
    parts = [
        f"{format_bytes(target, round_up=True)} instead of {format_bytes(caps[device])} "
        f"for {device!r} in max_memory"
        for device, target in targets.items()
        if device in caps and caps[device] < target
    ]
    bounds = {device: _bound(case.uncapped, device) for device in targets}
    missing = max(targets[device] - bound for device, bound in bounds.items() if bound is not None)
    if missing > 0:
        owned = math.ceil(missing / (1 - case.options.headroom) / _GRAIN) * _GRAIN
        each = " on each GPU" if len(targets) > 1 else ""
        parts.append(f"{format_bytes(owned, round_up=True)} more {_TITLES[shortfall.tier]}{each}")
    return " and ".join(parts)


def _bound(budgets: Budgets, device: str) -> int | None:
    return budgets.by_device()[device]


def _more(budgets: Budgets, devices: tuple[str, ...], extra: int) -> Budgets:
    bounds = {device: (_bound(budgets, device) or 0) + extra for device in devices}
    gpus = {name: bounds.get(name, size) for name, size in budgets.gpus.items()}
    cpu, disk = bounds.get("cpu", budgets.cpu), bounds.get("disk", budgets.disk)
    return replace(budgets, gpus=gpus, cpu=cpu, disk=disk)
