"""What `abuse.py` makes of its numbers: what is wrong, which target is missed, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attacks import CASES, Case
from measuring import mib, table

TARGET_PROBE = 0.05
"""Most seconds of the 99th percentile of a probe's answers."""

TARGET_NEIGHBOUR = 0.9
"""Least tokens per second of the neighbour, as a share of those beside the dropped load."""

TARGET_REFUSAL = 1e-3
"""Most seconds that a refusal takes longer than the probe's answer (medians)."""

TARGET_PASSES = 3.0
"""Most passes until a lone text is answered (median): that which runs, one more, and its own."""

TARGET_SILENCE = 16.0
"""Most seconds until a waiting stream has a comment."""

Result = Mapping[str, Any]


def wrong(result: Result) -> list[str]:
    """Return sentences about what no busy machine explains."""
    case, seen = _case_of(result), set(result["counts"])
    faults = []
    if seen - case.statuses:
        faults.append(f"statuses {sorted(seen - case.statuses)}")
    if result.get("kills"):
        faults.append("a process was killed for memory")
    faults += [f"{count} {what} stay open" for what, count in result["left"].items() if count]
    for path in ("live", "ready"):
        if failed := result[path]["failed"]:
            faults.append(f"{failed} probes of {path} failed")
    return [f"{case.name}: {what}." for what in faults]


def unseen(result: Result) -> list[str]:
    """Return sentences about statuses without which a case did not measure what it claims."""
    lacking = _case_of(result).needed - set(result["counts"])
    return [f"{result['name']}: no status {status}." for status in sorted(lacking)]


def _case_of(result: Result) -> Case:
    return next(case for case in CASES if case.name == result["name"])


def targets(result: Result) -> list[dict[str, Any]]:
    """Return the targets of a case, with what was measured."""
    compared = [
        _most(f"{path} p99", result[path]["p99"], TARGET_PROBE) for path in ("live", "ready")
    ]
    if result.get("neighbour") is not None:
        least, x = TARGET_NEIGHBOUR, result["neighbour"]
        compared.append({"what": "neighbour", "value": x, "bound": least, "reached": x >= least})
    refused = result["seconds"].get("429")
    if refused is not None and result["name"].startswith("C13"):
        late = refused["p50"] - result["live"]["p50"]
        compared.append(_most("429 p50 beyond live p50", late, TARGET_REFUSAL))
    if result["name"].startswith("C11"):
        compared.append(_most("lone text's passes", result["lone_passes"], TARGET_PASSES))
    if result["first_event"] is not None:
        compared.append(_most("first comment", result["first_event"], TARGET_SILENCE))
    return [{"case": result["name"], **target} for target in compared]


def _most(what: str, value: float, bound: float) -> dict[str, Any]:
    return {"what": what, "value": value, "bound": bound, "reached": value <= bound}


def missed(target: Mapping[str, Any]) -> str:
    """Return the sentence about a target that was missed."""
    return f"{target['case']}: {target['what']} {target['value']:.3g}, bound {target['bound']:g}."


def report(results: Sequence[Result]) -> str:
    """Return the table of all cases, and the seconds that refused callers were told to wait."""
    columns = ("case", "live p50", "p99", "max ms", "ready p99", "neighbour", "tokens/s", "memory")
    rows = [_row(result) for result in results]
    lines = [table((*columns, "statuses"), rows), ""]
    lines += [
        f"{result['name']}: Retry-After in s: {_pairs(result['retry_after'])}"
        for result in results
        if result["name"].startswith("C13") and result["retry_after"]
    ]
    lines += [
        f"{result['name']}: answered after p50 {1000 * result['lone']['p50']:.0f} ms, max "
        f"{1000 * result['lone']['max']:.0f} ms; a pass {1000 * result['pass_seconds']:.0f} ms"
        for result in results
        if "lone" in result
    ]
    return "\n".join(lines)


def _row(result: Result) -> list[str]:
    live, ready = result["live"], result["ready"]
    x, tokens = result.get("neighbour"), result.get("tokens")
    beside = (
        ""
        if result.get("tokens_beside_dropped") is None
        else (f"{result['tokens_beside_dropped']:.0f} → ")
    )
    return [
        result["name"],
        *(f"{1000 * live[name]:.1f}" for name in ("p50", "p99", "max")),
        f"{1000 * ready['p99']:.1f}",
        "-" if x is None else f"{x:.2f}",
        "-" if tokens is None else f"{beside}{tokens:.0f}",
        mib(result["anonymous"]) if "anonymous" in result else "-",
        _pairs(result["counts"]),
    ]


def _pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key} x {count}" for key, count in sorted(counts.items()))
