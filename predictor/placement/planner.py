"""Plan the placement of a model: the entry of this floor.

`plan` turns the pod's resources and the placement options into a budget for each tier. What goes
where within these budgets is decided in `decision`. If nothing fits, `refusal` finds the
smallest changes that would make the model fit. If the number of sequences is not fixed, the KV
cache is enlarged to the memory that is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from predictor.errors import ConfigurationError
from predictor.placement.decision import Decision, is_offloaded
from predictor.placement.demand import Demand
from predictor.placement.device_map import explicit_assignment
from predictor.placement.expert_slots import share_slots
from predictor.placement.plan import ExpertSlots, Placement, PlacementOptions, Tier
from predictor.placement.prompt_chunk import decide_load
from predictor.placement.refusal import does_not_fit
from predictor.placement.tiers import Budgets, fill_tiers, main_device
from predictor.placement.units import Footprint, PlacementUnit
from predictor.pod.resources import PodResources
from predictor.quantity import format_bytes


def plan(footprint: Footprint, resources: PodResources, options: PlacementOptions) -> Placement:
    """Return the placement.

    Raises:
        DoesNotFit: No placement keeps within every budget. The sentence says which tier lacks how
            much, and which changes would make the model fit.
        ConfigurationError: An option names a device or a module that is not there.
    """
    owned = _owned(resources, options)
    budgets, notes = _budgets(owned, options)
    demand = Demand(footprint, options.max_concurrency or 1)
    decision = decide_load(demand, budgets, options)
    if decision is None:
        explicit = explicit_assignment(footprint, options.device_map, budgets)
        uncapped, _ = _budgets(owned, replace(options, max_memory={}))
        raise does_not_fit(demand, budgets, uncapped, options, explicit)
    experts = share_slots(decision.demand, decision.assignment, budgets)
    tiers = fill_tiers(decision.demand, decision.assignment, budgets, experts)
    filled = {
        name: replace(tier, owned=None if tier.budget is None else owned[name])
        for name, tier in tiers.items()
    }
    return _placement(decision, filled, experts, notes)


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
    cpu, disk = budgets["cpu"] or 0, budgets["disk"]
    return Budgets(gpus, cpu, disk, options.in_place), tuple(notes)


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


def _placement(
    decision: Decision,
    filled: Mapping[str, Tier],
    experts: tuple[ExpertSlots, ...],
    notes: tuple[str, ...],
) -> Placement:
    footprint, staging = decision.demand.footprint, decision.demand.expert_staging
    main = main_device(decision.assignment)
    return Placement(
        architecture=footprint.architecture,
        dtype=footprint.dtype,
        quantization=footprint.quantization,
        weights_layout=footprint.weights_layout,
        device_map=_device_map(decision, main),
        tiers=tuple(filled.values()),
        execution_device=int(main) if main.isdigit() else main,
        max_model_len=footprint.max_model_len,
        kv_tokens=decision.demand.kv_tokens,
        window=footprint.window,
        window_tokens=decision.demand.window_tokens,
        least_row_tokens=footprint.least_row_tokens,
        draft_model=footprint.draft_model,
        prefill_chunk=footprint.prefill_chunk,
        limited_by=_limit(filled, footprint, main, experts),
        state_slots=decision.demand.slots if footprint.kv_fixed else 0,
        by_block=footprint.by_block,
        stream_buffers=decision.demand.stream_buffers,
        modules=dict(itertools.chain.from_iterable(map(_modules, footprint.units))),
        fixed=frozenset(name for unit in footprint.units for name in unit.fixed_names),
        notes=(
            *notes,
            *_formulas(footprint),
            *_fixed_parts(decision, main),
            *_whole_mixtures(footprint, filled, main),
            *_one_buffer(decision),
        ),
        experts=experts,
        expert_staging=staging,
        host_expert_staging=0 if main == "cpu" else staging,
    )


def _device_map(decision: Decision, main: str) -> dict[str, int | str]:
    """Return the device of each name; a unit of which nothing is streamed is where it executes."""
    units = zip(decision.demand.footprint.units, decision.assignment, strict=True)
    devices = {
        name: main if device in ("cpu", "disk") and unit.fixed and not unit.weights else device
        for unit, device in units
        for name in unit.names
    }
    return {name: int(device) if device.isdigit() else device for name, device in devices.items()}


def _modules(unit: PlacementUnit) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each name of a unit with its modules."""
    for name in unit.names:
        yield name, tuple(x for x in unit.modules if x == name or x.startswith(f"{name}."))


def _fixed_parts(decision: Decision, main: str) -> tuple[str, ...]:
    """Return a sentence about what stays in memory of the units that are offloaded."""
    units = zip(decision.demand.footprint.units, decision.assignment, strict=True)
    fixed = [
        unit for unit, device in units if unit.fixed_names and device in {"cpu", "disk"} - {main}
    ]
    if not fixed:
        return ()
    names, size = ", ".join(unit.names[0] for unit in fixed), sum(unit.fixed for unit in fixed)
    return (
        f"{format_bytes(size)} of {names} stay in memory wherever they are placed, because modules "
        "around them read their weights, or no file has them.",
    )


def _formulas(footprint: Footprint) -> tuple[str, ...]:
    """Return a sentence if sizes come from formulas."""
    if footprint.probed:
        return ()
    return (
        f"KV cache and activations are estimated by formulas from the config, because a "
        f"{footprint.architecture} does not run on PyTorch's meta device, where they would be "
        "measured.",
    )


def _whole_mixtures(footprint: Footprint, filled: Mapping[str, Tier], main: str) -> tuple[str, ...]:
    """Return a sentence about experts that are read with their blocks, if blocks are offloaded."""
    is_offloaded = any(filled[name].units for name in ("cpu", "disk") if name != main)
    if not footprint.whole_mixtures or not is_offloaded:
        return ()
    return (
        f"The experts of {footprint.whole_mixtures} blocks cannot be read one by one (they do not "
        "use transformers' experts interface, or are in a .bin checkpoint), so these blocks are "
        "streamed whole, with all of their experts.",
    )


def _one_buffer(decision: Decision) -> tuple[str, ...]:
    """Return a sentence if reading does not overlap computing."""
    if decision.demand.stream_buffers > 1 or not is_offloaded(decision):
        return ()
    return (
        "Only one module of a block fits beside the rest at a time, so each is read after the one "
        "before it has computed; with memory for two, reading would overlap computing.",
    )


def _limit(
    filled: Mapping[str, Tier], footprint: Footprint, main: str, experts: Sequence[ExpertSlots]
) -> str:
    offloaded = _offloaded(filled, footprint, main, experts)
    slowest = next((name for name in ("disk", "cpu") if name in offloaded), main)
    if slowest == main:
        if main == "cpu" and next(iter(filled)) != "cpu":
            return "GPUs that hold no part: the processor executes the whole model"
        return "nothing: every weight is where it executes"
    share = 100 * offloaded[slowest] / max(1, footprint.weights)
    scarce, where = ("main memory", "disk") if slowest == "disk" else ("GPU memory", "main memory")
    size = format_bytes(offloaded[slowest])
    return f"{scarce}: {size} ({share:.0f} %) are streamed from {where}"


def _offloaded(
    filled: Mapping[str, Tier], footprint: Footprint, main: str, experts: Sequence[ExpertSlots]
) -> dict[str, int]:
    """Return the bytes that are streamed from each tier other than the one that executes."""
    offloaded = {
        name: filled[name].weights
        for name in ("cpu", "disk")
        if name != main and filled[name].units
    }
    in_memory = on_device = 0
    for layer, slots in zip(footprint.experts_apart, experts, strict=True):
        in_memory += layer.weights * slots.in_memory // layer.count
        on_device += layer.weights * slots.device_slots // layer.count
    on_disk = filled["disk"].weights - in_memory
    if experts and on_disk > 0:
        offloaded["disk"] = on_disk
    if main != "cpu" and in_memory > on_device:
        offloaded["cpu"] = filled["cpu"].weights + in_memory - on_device
    return offloaded


def _title(name: str) -> str:
    return {"cpu": "main memory", "disk": "the offload volume"}.get(name, f"GPU {name}")
