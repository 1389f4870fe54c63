"""Report a placement: as the table that `predictor plan` prints, and as JSON."""

from __future__ import annotations

from typing import Any

from predictor.placement.plan import Placement, Tier
from predictor.quantity import format_bytes

_COLUMNS = (
    "tier",
    "units",
    "weights",
    "KV cache",
    "staging",
    "activ.",
    "planned",
    "can use",
    "full",
)


def table(placement: Placement) -> str:
    """Return the placement as a table: a line for each tier, and the limiting resource."""
    rows = [_COLUMNS, *(_row(tier) for tier in placement.tiers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join(
        [
            f"Placement of {placement.architecture} in {placement.dtype}",
            lines[0],
            rule,
            *lines[1:],
            f"executes offloaded parts on: {_title(str(placement.execution_device))}",
            f"{_cache(placement)}; longest sequence: {placement.max_model_len} tokens",
            f"limited by {placement.limited_by}",
            *(f"note: {note}" for note in placement.notes),
        ]
    )


def _cache(placement: Placement) -> str:
    if not any(tier.kv for tier in placement.tiers):
        return "no KV cache"
    return f"KV cache: {placement.kv_tokens} tokens"


def _row(tier: Tier) -> tuple[str, ...]:
    full = f"{100 * tier.planned / tier.budget:.0f} %" if tier.budget else "-"
    amounts = (tier.weights, tier.kv, tier.staging, tier.activations, tier.planned)
    usable = "in place" if tier.budget is None else format_bytes(tier.budget)
    return (_title(tier.name), str(tier.units), *map(format_bytes, amounts), usable, full)


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in rest]


def _title(name: str) -> str:
    return f"GPU {name}" if name.isdigit() else name


def as_json(placement: Placement) -> dict[str, Any]:
    """Return the placement as JSON values; all sizes are bytes."""
    return {
        "architecture": placement.architecture,
        "dtype": placement.dtype,
        "max_model_len": placement.max_model_len,
        "kv_tokens": placement.kv_tokens,
        "execution_device": placement.execution_device,
        "limited_by": placement.limited_by,
        "by_block": placement.by_block,
        "notes": list(placement.notes),
        "tiers": [_tier_json(tier) for tier in placement.tiers],
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
        "reserve": tier.reserve,
        "units": tier.units,
    }
