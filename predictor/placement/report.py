"""Report a placement: as the table that `predictor plan` prints, and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from predictor.placement.estimate import (
    ASSUMED,
    GB,
    RESOURCE_TITLES,
    Bandwidths,
    DecodeRate,
    Estimate,
    Resource,
)
from predictor.placement.plan import ExpertSlots, Placement, Tier
from predictor.placement.units import describe_dtype
from predictor.quantity import format_bytes

_EXPERTS = 6
"""The index of the column that only a placement with expert slots has."""

_COLUMNS = (
    "tier",
    "units",
    "weights",
    "KV cache",
    "staging",
    "activ.",
    "experts",
    "planned",
    "can use",
    "full",
)


def table(placement: Placement) -> str:
    """Return the placement as a table: a line for each tier, and the limiting resource."""
    rows = [_COLUMNS, *(_row(tier) for tier in placement.tiers)]
    if not placement.experts:
        rows = [row[:_EXPERTS] + row[_EXPERTS + 1 :] for row in rows]
    return "\n".join(
        [
            f"Placement of {placement.architecture} in "
            f"{describe_dtype(placement.dtype, placement.quantization)}",
            *aligned_lines(rows),
            f"executes offloaded parts on: {title_of(str(placement.execution_device))}",
            *([f"experts: {describe_experts(placement)}"] if placement.experts else []),
            *_draft_lines(placement),
            f"{describe_cache(placement)}; longest sequence: {placement.max_model_len} tokens",
            f"limited by {placement.limited_by}",
            *(f"note: {note}" for note in placement.notes),
        ]
    )


def describe_cache(placement: Placement) -> str:
    """Return how much KV cache there is: tokens, those in windows, and states."""
    if not any(tier.kv for tier in placement.tiers):
        return "no KV cache"
    windows = (
        f", {placement.window_tokens} in windows of {placement.window}" if placement.window else ""
    )
    states = f", states of {placement.state_slots} sequences" if placement.state_slots else ""
    tokens = f"KV cache: {placement.kv_tokens} tokens" if placement.kv_tokens else "no KV cache"
    return f"{tokens}{windows}{states}"


def _draft_lines(placement: Placement) -> list[str]:
    """Return a line about the draft model, whose bytes are those of the tier that executes too."""
    draft = placement.draft_model
    if draft is None:
        return []
    sizes = format_bytes(draft.weights), format_bytes(draft.kv_per_token * placement.kv_tokens)
    return [
        f"draft model: {draft.architecture} in {describe_dtype(draft.dtype, draft.quantization)}, "
        f"{sizes[0]} of weights and {sizes[1]} of KV cache on "
        f"{title_of(str(placement.execution_device))}"
    ]


def _draft_json(placement: Placement) -> dict[str, Any] | None:
    draft = placement.draft_model
    if draft is None:
        return None
    return dataclasses.asdict(draft) | {"kv": draft.kv_per_token * placement.kv_tokens}


def _row(tier: Tier) -> tuple[str, ...]:
    full = f"{100 * tier.planned / tier.budget:.0f} %" if tier.budget else "-"
    amounts = (
        *(tier.weights, tier.kv, tier.staging, tier.activations),
        *(tier.experts, tier.planned),
    )
    usable = "in place" if tier.budget is None else format_bytes(tier.budget)
    return (title_of(tier.name), str(tier.units), *map(format_bytes, amounts), usable, full)


def describe_experts(placement: Placement) -> str:
    """Return how many experts there are, how many are used, and how many stay in memory.

    For example: 128 experts in each of 48 layers, 8 used; 31 of 128 stay in main memory.
    """
    layers = placement.experts
    counts = Counter((layer.count, layer.routed) for layer in layers)
    parts = [
        f"{count} experts in each of {number} layers, {routed} used"
        for (count, routed), number in counts.items()
    ]
    device = placement.execution_device
    on_device = "in main memory" if device == "cpu" else f"on GPU {device}"
    stay = f"{_range(layers, lambda layer: layer.device_slots)} stay {on_device}"
    if device != "cpu":
        stay += f", {_range(layers, lambda layer: layer.host_slots)} in main memory"
    return f"{', '.join(parts)}; {stay}"


def describe_estimate(estimate: Estimate) -> str:
    """Return the estimated rates, and what limits the first of them, as a phrase."""
    single, full = estimate.single, estimate.full
    rows = f", {format_rate(full)} with {full.rows}" if full.rows > 1 else ""
    return (
        f"estimate: {format_rate(single)} {estimate.unit} with one request{rows}, limited by "
        f"{_describe_bandwidth(estimate.bandwidths, single.limited_by)}"
    )


def describe_bandwidths(bandwidths: Bandwidths) -> str:
    """Return the bandwidths and where each is from: ``disk at 1 GB/s (assumed)``."""
    return ", ".join(_describe_bandwidth(bandwidths, resource) for resource in RESOURCE_TITLES)


def _describe_bandwidth(bandwidths: Bandwidths, resource: Resource) -> str:
    source = bandwidths.sources.get(resource, ASSUMED)
    return (
        f"{RESOURCE_TITLES[resource]} at {round(bandwidths.of(resource) / GB, 2):g} GB/s ({source})"
    )


def format_rate(rate: DecodeRate) -> str:
    """Return tokens/s with two significant digits, and no decimals from 10 on."""
    tokens = rate.tokens_per_second
    return f"{tokens:.0f}" if tokens >= 10 else f"{tokens:.2g}"


def _range(layers: Sequence[ExpertSlots], slots: Callable[[ExpertSlots], int]) -> str:
    """Return how many of a layer's experts have slots, as a range if the layers differ."""
    numbers, counts = sorted({slots(layer) for layer in layers}), {x.count for x in layers}
    total = f" of {counts.pop()}" if len(counts) == 1 else ""
    joint = " or " if numbers[-1] - numbers[0] == 1 else " to "
    return joint.join(dict.fromkeys([str(numbers[0]), str(numbers[-1])])) + total


def aligned_lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table, whose first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *others = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return [head, "  ".join("-" * width for width in widths), *others]


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in rest]


def title_of(name: str) -> str:
    """Return how people call a tier: ``GPU 0``, ``cpu``, ``disk``."""
    return f"GPU {name}" if name.isdigit() else name


def as_json(placement: Placement) -> dict[str, Any]:
    """Return the placement as JSON values; all sizes are bytes."""
    return {
        "architecture": placement.architecture,
        "dtype": placement.dtype,
        "quantization": placement.quantization or None,
        "weights_layout": placement.weights_layout,
        "max_model_len": placement.max_model_len,
        "kv_tokens": placement.kv_tokens,
        "state_slots": placement.state_slots,
        "window": placement.window,
        "window_tokens": placement.window_tokens,
        "execution_device": placement.execution_device,
        "limited_by": placement.limited_by,
        "by_block": placement.by_block,
        "notes": list(placement.notes),
        "tiers": [_tier_json(tier) for tier in placement.tiers],
        "experts": [dataclasses.asdict(layer) for layer in placement.experts],
        "expert_staging": placement.expert_staging,
        "host_expert_staging": placement.host_expert_staging,
        "prefill_chunk": placement.prefill_chunk,
        "draft_model": _draft_json(placement),
        "device_map": placement.device_map,
    }


def _tier_json(tier: Tier) -> dict[str, Any]:
    return {
        "name": tier.name,
        "owned": tier.owned,
        "budget": tier.budget,
        "planned": tier.planned,
        "weights": tier.weights,
        "kv": tier.kv,
        "staging": tier.staging,
        "activations": tier.activations,
        "experts": tier.experts,
        "reserve": tier.reserve,
        "units": tier.units,
    }
