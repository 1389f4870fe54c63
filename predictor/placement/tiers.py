"""The bytes that an assignment of units to devices takes on each tier, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from predictor.placement.demand import Demand
from predictor.placement.plan import ExpertSlots, Tier
from predictor.placement.units import Footprint

Assignment = tuple[str, ...]
"""A device name for each unit, in the order of `Footprint.units`."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes that may be planned on each tier.

    Attributes:
        gpus: By name, in order; empty without any.
        cpu: Main memory.
        disk: The disk tier; None if it is not bounded.
        in_place: Whether the disk tier is not bounded either for a footprint that needs no
            conversion, since its parts are read from the checkpoint in place.
    """

    gpus: Mapping[str, int]
    cpu: int
    disk: int | None
    in_place: bool = False

    def by_device(self, footprint: Footprint | None = None) -> dict[str, int | None]:
        """Return the budgets by device name: GPUs in order, then ``"cpu"`` and ``"disk"``.

        Args:
            footprint: The footprint to be placed; None if it may need a conversion.
        """
        converts = footprint is None or footprint.needs_conversion
        disk = self.disk if converts or not self.in_place else None
        return {**self.gpus, "cpu": self.cpu, "disk": disk}


def main_device(assignment: Assignment) -> str:
    """Return the device that executes offloaded units: the first GPU in use, else ``"cpu"``."""
    return min(set(assignment) - {"cpu", "disk"}, key=int, default="cpu")


def fill_tiers(
    demand: Demand,
    assignment: Assignment,
    budgets: Budgets,
    experts: Sequence[ExpertSlots] = (),
) -> dict[str, Tier]:
    """Return the tiers as an assignment fills them, by name; `owned` is left to the caller.

    If a GPU is in use, units in main memory and on disk are streamed to the first GPU in use
    (`accelerate.dispatch_model`'s main device), which holds their KV cache and all that stays where
    they execute. Otherwise the processor executes them. Experts apart from their blocks are all on
    disk.

    Args:
        demand: The model and its load.
        assignment: The device of each unit.
        budgets: Bytes of each tier.
        experts: The slots of the experts that stay in memory.
    """
    bounds = budgets.by_device(demand.footprint)
    main = main_device(assignment)
    sums = {name: _Sum() for name in bounds}
    for unit, device in zip(demand.footprint.units, assignment, strict=True):
        runs_on = device if device in budgets.gpus else main
        sums[device].weights += unit.weights
        sums[device].units += 1
        sums[runs_on].weights += unit.stays
        sums[runs_on].kv += demand.kv_bytes(unit)
        sums[runs_on].executes = True
    _add_staging(demand, assignment, sums, main)
    sums["disk"].weights += sum(layer.weights for layer in demand.footprint.experts_apart)
    for layer in experts:
        sums[main].experts += layer.device_slots * layer.size
        sums["cpu"].experts += layer.host_slots * layer.size
    return {
        name: Tier(
            name=name,
            owned=None,
            budget=bounds[name],
            weights=total.weights,
            kv=total.kv,
            staging=total.staging,
            activations=_activations(demand, name) if total.executes else 0,
            units=total.units,
            experts=total.experts,
        )
        for name, total in sums.items()
    }


def _activations(demand: Demand, device: str) -> int:
    return demand.activations + (demand.kernels if device == "cpu" else 0)


@dataclass(slots=True)
class _Sum:
    weights: int = 0
    kv: int = 0
    staging: int = 0
    units: int = 0
    experts: int = 0
    executes: bool = False


def _add_staging(demand: Demand, assignment: Assignment, sums: dict[str, _Sum], main: str) -> None:
    placed = list(zip(demand.footprint.units, assignment, strict=True))
    on_disk = [unit for unit, device in placed if device == "disk"]
    waiting = [unit for unit, device in placed if device == "cpu" and main != "cpu"]
    resident = [unit for unit, device in placed if device == "cpu" and main == "cpu"]
    if main != "cpu":
        sums[main].staging = demand.device_buffer_bytes(on_disk + waiting)
    sums["cpu"].staging = demand.host_buffer_bytes(
        on_disk, executes=main == "cpu", waiting=waiting, resident=resident
    )


def fits(demand: Demand, assignment: Assignment, budgets: Budgets) -> bool:
    """Return whether an assignment takes no more than the budget of every tier."""
    return all(
        tier.budget is None or tier.planned <= max(0, tier.budget)
        for tier in fill_tiers(demand, assignment, budgets).values()
    )
