"""Decide where every unit of the model goes: on a GPU, in main memory or on disk.

`plan` turns the pod's resources and the placement options into budgets. `assignment.search` decides
which units stay resident within them and which are offloaded. `refusal` writes the sentence if
nothing fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from predictor.errors import ConfigurationError, nearest
from predictor.placement.assignment import (
    Assignment,
    Budgets,
    fits,
    main_device,
    search,
    spread,
    tiers,
)
from predictor.placement.demand import Demand
from predictor.placement.plan import Placement, PlacementOptions, Tier
from predictor.placement.refusal import does_not_fit
from predictor.placement.units import Footprint
from predictor.pod.resources import PodResources
from predictor.quantity import format_bytes

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to share a model among several GPUs; ``auto`` is ``balanced``."""


def plan(footprint: Footprint, resources: PodResources, options: PlacementOptions) -> Placement:
    """Returns the placement.

    Raises:
        DoesNotFit: No placement keeps within every budget; the sentence says which tier lacks how
            much and what would make it fit.
        ConfigurationError: An option names a device or a module that is not there.
    """
    owned = _owned(resources, options)
    budgets, notes = _budgets(owned, options)
    demand, assignment = _decide(Demand(footprint, options.max_concurrency or 1), budgets, options)
    if assignment is None:
        explicit = _explicit_map(options.device_map)
        requested = None if explicit is None else _assign(footprint, explicit, budgets)
        roof, _ = _budgets(owned, replace(options, max_memory={}))
        raise does_not_fit(demand, budgets, roof, options, requested)
    if options.max_concurrency is None:
        demand = _at_most_load(demand, assignment, budgets, options.max_batch_size)
    filled = {
        name: replace(tier, owned=owned[name])
        for name, tier in tiers(demand, assignment, budgets).items()
    }
    return _placement(demand, assignment, filled, notes)


def _decide(
    demand: Demand, budgets: Budgets, options: PlacementOptions
) -> tuple[Demand, Assignment | None]:
    """The assignment, and whether blocks are streamed whole for it; None where nothing fits.

    Buffers for whole blocks may be too much, or for any GPU to compute; a leaf module at a time is
    slow, and less.
    """
    whole = _assignment(demand, budgets, options)
    if not demand.footprint.by_block or (whole is not None and _is_on_gpu(whole, budgets)):
        return demand, whole
    less = replace(demand, footprint=replace(demand.footprint, by_block=False))
    by_leaf = _assignment(less, budgets, options)
    if whole is None or (by_leaf is not None and _is_on_gpu(by_leaf, budgets)):
        return less, by_leaf
    return demand, whole


def _is_on_gpu(assignment: Assignment, budgets: Budgets) -> bool:
    """Whether a GPU computes, or there is none."""
    return main_device(assignment) in budgets.gpus or not budgets.gpus


def _assignment(demand: Demand, budgets: Budgets, options: PlacementOptions) -> Assignment | None:
    """Return the requested assignment, or the best one; None if it does not fit."""
    explicit = _explicit_map(options.device_map)
    if explicit is None:
        assignment = search(demand, budgets, str(options.device_map))
        return None if assignment is None else spread(demand, assignment, budgets)
    requested = _assign(demand.footprint, explicit, budgets)
    return requested if fits(tiers(demand, requested, budgets)) else None


def _at_most_load(demand: Demand, assignment: Assignment, budgets: Budgets, most: int) -> Demand:
    """The same model for as many sequences, up to `most`, as memory is left for."""
    low, high = demand.concurrency, max(demand.concurrency, most)
    while low < high:
        middle = (low + high + 1) // 2
        more = replace(demand, concurrency=middle)
        low, high = (middle, high) if fits(tiers(more, assignment, budgets)) else (low, middle - 1)
    return replace(demand, concurrency=low)


def _owned(resources: PodResources, options: PlacementOptions) -> dict[str, int | None]:
    gpus: dict[str, int | None] = {str(gpu.index): gpu.free for gpu in resources.accelerators}
    return {**gpus, "cpu": resources.memory.available, "disk": options.disk}


def _budgets(
    owned: Mapping[str, int | None], options: PlacementOptions
) -> tuple[Budgets, tuple[str, ...]]:
    """Return the budget of each tier; `max_memory` is capped by the resources of the pod."""
    _check_devices(options.max_memory, owned)
    notes: list[str] = []
    budgets: dict[str, int | None] = {}
    for name, have in owned.items():
        reserve = options.reserve if name == "cpu" else 0
        usable = None if have is None else int(have * (1 - options.headroom)) - reserve
        cap = options.max_memory.get(name)
        if cap is not None and usable is not None and cap > usable:
            notes.append(
                f"max_memory asks for {format_bytes(cap)} on {_title(name)}, but this pod can "
                f"use {format_bytes(max(0, usable))} there, and no more is planned."
            )
        bounds = [bound for bound in (usable, cap) if bound is not None]
        budgets[name] = min(bounds) if bounds else None
    gpus = {name: size or 0 for name, size in budgets.items() if name not in ("cpu", "disk")}
    return Budgets(gpus, budgets["cpu"] or 0, budgets["disk"]), tuple(notes)


def _check_devices(max_memory: Mapping[str, int], owned: Mapping[str, int | None]) -> None:
    for device in max_memory:
        if device in owned:
            continue
        if device.isdigit():
            gpus = len(owned) - 2
            raise ConfigurationError(
                f"max_memory names GPU {device}, but this pod sees "
                f"{'no GPU' if not gpus else f'{gpus} GPU(s)'}; take the key {device!r} out of "
                "max_memory, or give the pod the GPU."
            )
        raise ConfigurationError(
            f"max_memory names {device!r}; devices are '0', '1'... for GPUs, 'cpu' and 'disk'."
        )


def _explicit_map(device_map: str | dict[str, str]) -> dict[str, str] | None:
    """Return the requested device map with our device names; None for a strategy."""
    if isinstance(device_map, dict):
        return {name: _device(device) for name, device in device_map.items()}
    return None if device_map in STRATEGIES else {"": _device(device_map)}


def _device(name: str) -> str:
    plain = name.removeprefix("cuda:").removeprefix("xpu:")
    if name in ("cuda", "xpu"):
        return "0"
    if plain.isdigit() or plain in ("cpu", "disk"):
        return plain
    raise ConfigurationError(
        f"device_map names {name!r}, which is no strategy and no device; "
        + nearest(name, (*STRATEGIES, "cpu", "disk", "cuda"))
    )


def _assign(footprint: Footprint, device_map: dict[str, str], budgets: Budgets) -> Assignment:
    for device in device_map.values():
        if device not in (*budgets.gpus, "cpu", "disk"):
            raise ConfigurationError(
                f"device_map names GPU {device}, but this pod sees {len(budgets.gpus)} GPU(s)."
            )
    names = [name for unit in footprint.units for name in unit.names]
    for key in device_map:
        if not any(_covers(key, name) for name in names):
            raise ConfigurationError(
                f"device_map names {key!r}, which is no module of {footprint.architecture} that "
                "can be placed apart; blocks are placed whole."
            )
    return tuple(_device_of(unit.names, device_map) for unit in footprint.units)


def _covers(key: str, name: str) -> bool:
    return key == "" or name == key or name.startswith(f"{key}.")


def _device_of(names: tuple[str, ...], device_map: dict[str, str]) -> str:
    devices = set()
    for name in names:
        keys = [key for key in device_map if _covers(key, name)]
        if not keys:
            raise ConfigurationError(f"device_map leaves {name!r} out.")
        devices.add(device_map[max(keys, key=len)])
    if len(devices) > 1:
        raise ConfigurationError(
            f"device_map puts {' and '.join(names)} on different devices, but they share weights."
        )
    return devices.pop()


def _placement(
    demand: Demand,
    assignment: Assignment,
    filled: Mapping[str, Tier],
    notes: tuple[str, ...],
) -> Placement:
    footprint = demand.footprint
    main = main_device(assignment)
    return Placement(
        architecture=footprint.architecture,
        dtype=footprint.dtype,
        device_map={
            name: int(device) if device.isdigit() else device
            for unit, device in zip(footprint.units, assignment, strict=True)
            for name in unit.names
        },
        tiers=tuple(filled.values()),
        execution_device=int(main) if main.isdigit() else main,
        max_model_len=footprint.max_model_len,
        kv_tokens=demand.concurrency * footprint.max_model_len,
        limited_by=_limit(filled, footprint, main),
        by_block=footprint.by_block,
        notes=notes,
    )


def _limit(filled: Mapping[str, Tier], footprint: Footprint, main: str) -> str:
    slowest = next((name for name in ("disk", "cpu") if filled[name].units), main)
    if slowest == main:
        if main == "cpu" and next(iter(filled)) != "cpu":
            return "GPUs that hold no part: the processor executes the whole model"
        return "nothing: every weight is where it executes"
    offloaded = filled[slowest].weights
    share = 100 * offloaded / max(1, footprint.weights)
    scarce, where = ("main memory", "disk") if slowest == "disk" else ("GPU memory", "main memory")
    return f"{scarce}: {format_bytes(offloaded)} ({share:.0f} %) are streamed from {where}"


def _title(name: str) -> str:
    return {"cpu": "main memory", "disk": "the offload volume"}.get(name, f"GPU {name}")
