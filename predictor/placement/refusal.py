"""Why a model does not fit, in one sentence, with the smallest changes that would make it fit.

Each remedy is found by planning again with more of one tier, or for shorter sequences, so it is
true by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from predictor.errors import DoesNotFit
from predictor.placement.assignment import Assignment, Budgets, Demand, fits, search, tiers
from predictor.placement.plan import Wishes
from predictor.quantity import format_bytes

_GRAIN = 1024**2
"""Remedies are said to the next MiB."""

_TITLES = {"gpu": "GPU memory", "cpu": "main memory", "disk": "space on the offload volume"}


@dataclass(frozen=True, slots=True)
class _Case:
    demand: Demand
    budgets: Budgets
    wishes: Wishes
    explicit: Assignment | None

    def feasible(self, budgets: Budgets, demand: Demand) -> bool:
        if self.explicit is not None:
            return fits(tiers(demand, self.explicit, budgets))
        return search(demand, budgets, str(self.wishes.device_map)) is not None

    def budget(self, tier: str) -> int:
        gpus = min(self.budgets.gpus.values(), default=0)
        return {"gpu": gpus, "cpu": self.budgets.cpu, "disk": self.budgets.disk or 0}[tier]


def does_not_fit(
    demand: Demand, budgets: Budgets, wishes: Wishes, explicit: Assignment | None
) -> DoesNotFit:
    """Returns the error for a demand that no assignment within the budgets satisfies.

    Args:
        demand: What was to be placed.
        budgets: What may be planned on each tier.
        wishes: What the user asked for.
        explicit: The assignment that the user stated; None where one was searched for.
    """
    case = _Case(demand, budgets, wishes, explicit)
    bounded = [*(["gpu"] if budgets.gpus else []), "cpu"]
    bounded += [] if budgets.disk is None else ["disk"]
    extras = {tier: _smallest_extra(case, tier) for tier in bounded}
    lacking = next((tier for tier, extra in extras.items() if extra is not None), bounded[0])
    remedies = [_more_memory(case, tier, extra) for tier, extra in extras.items() if extra]
    shorter = _longest_len(case)
    if shorter is not None:
        remedies.append(f"max_model_len {shorter} instead of {demand.footprint.max_model_len}")
    return _error(case, lacking, extras, tuple(remedies))


def _error(
    case: _Case, tier: str, extras: Mapping[str, int | None], remedies: tuple[str, ...]
) -> DoesNotFit:
    footprint, usable = case.demand.footprint, max(0, case.budget(tier))
    needed = case.budget(tier) + (extras[tier] or 0)
    subject = f"{footprint.architecture} in {footprint.dtype} does not fit"
    if not remedies:
        reason = f"{_TITLES[tier]} of {format_bytes(usable)} is not all that it lacks"
    else:
        reason = (
            f"{_TITLES[tier]} lacks {format_bytes(needed - usable)} (needs {format_bytes(needed)}, "
            f"can use {format_bytes(usable)}); it would fit with {' or '.join(remedies)}"
        )
    return DoesNotFit(
        f"{subject}: {reason}.", tier=tier, needed=needed, available=usable, remedies=remedies
    )


def _more_memory(case: _Case, tier: str, extra: int) -> str:
    """A remedy in what the user controls: the wish that bounds a tier, or what the pod owns."""
    device = next(iter(case.budgets.gpus), "") if tier == "gpu" else tier
    wish = case.wishes.max_memory.get(device)
    if wish is not None and wish <= case.budget(tier):
        return f"{format_bytes(extra)} more for {device!r} in max_memory"
    owned = math.ceil(extra / (1 - case.wishes.headroom) / _GRAIN) * _GRAIN
    return f"{format_bytes(owned)} more {_TITLES[tier]}"


def _more(budgets: Budgets, tier: str, extra: int) -> Budgets:
    if tier == "gpu":
        return replace(budgets, gpus={k: size + extra for k, size in budgets.gpus.items()})
    if tier == "cpu":
        return replace(budgets, cpu=budgets.cpu + extra)
    return replace(budgets, disk=(budgets.disk or 0) + extra)


def _smallest_extra(case: _Case, tier: str) -> int | None:
    """The smallest extra bytes, to the MiB, that make it fit; None where no amount does."""

    def feasible(grains: int) -> bool:
        return case.feasible(_more(case.budgets, tier, grains * _GRAIN), case.demand)

    units = case.demand.footprint.units
    all_in_one = tiers(case.demand, ("cpu",) * len(units), Budgets({}, 0, None))["cpu"]
    most = 4 * all_in_one.planned + abs(case.budget(tier))
    return _bisect(feasible, most // _GRAIN + 1)


def _bisect(feasible: Callable[[int], bool], high: int) -> int | None:
    if not feasible(high):
        return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high * _GRAIN


def _longest_len(case: _Case) -> int | None:
    """The longest shorter `max_model_len` that fits; None where none does."""
    low, high = 0, case.demand.footprint.max_model_len
    while high - low > 1:
        middle = (low + high) // 2
        footprint = replace(case.demand.footprint, max_model_len=middle)
        shorter = replace(case.demand, footprint=footprint)
        low, high = (middle, high) if case.feasible(case.budgets, shorter) else (low, middle)
    return low or None
