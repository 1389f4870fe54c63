"""The verdicts and the table of `quantised.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from measuring import mib, table

STREAMED = {"int8": 1.8, "int4": 3.0}
"""Least tokens per second as multiples of bf16's, where bf16 waits for the disk."""

OF_BANDWIDTH = {"int8": 0.8, "int4": 0.6}
"""Least fraction of the bandwidth of memory, with one user, where all weights stay."""

PEERS = {"bf16": "llama bf16", "int8": "llama q8_0", "int4": "llama q4_0"}
OF_PEER = {1: 1.0, 8: 1.0, 16: 0.9}
"""Least tokens per second as multiples of llama.cpp's in the comparable format, where all weights
stay, by number of users."""

OF_BEFORE = {16: 1.7, "prefill": 2.5}
"""Least tokens per second of bf16 as multiples of those of another copy of the predictor. They are
meant for processors without units for bfloat16."""

_DISK_BOUND = 0.5
"""Least fraction of the time that reading from disk takes where bf16 waits for the disk."""

_MOST_OF_BANDWIDTH = 1.15
"""A larger fraction is an error of measurement."""

_LEAST_AGREEING = 0.5
"""Fraction of first tokens that a file with the same weights has to agree on."""

Run = Mapping[str, Any]


def is_served(run: Run | None) -> bool:
    """Return whether a contestant was measured."""
    return run is not None and "levels" in run


def targets(result: Run) -> list[dict[str, Any]]:
    """Return what was measured beside what was hoped for."""
    reached = []
    for limit, runs in result["limits"].items():
        served = {who: run for who, run in runs.items() if is_served(run)}
        for what, measured, least in _compared(served, result):
            one = {"what": f"{limit}: {what}", "measured": measured, "target": least}
            reached.append(one | {"reached": measured >= least})
    return reached


def _compared(runs: Mapping[str, Run], result: Run) -> Iterator[tuple[str, float, float]]:
    """Yield what is compared within one limit: its title, the ratio and the target."""
    yield from _with_streamed(runs, result["disk"])
    for who, least in OF_BANDWIDTH.items():
        if who in runs and not runs[who]["on_disk"] and 1 in runs[who]["levels"]:
            yield f"{who} of memory bandwidth, 1 user", of_bandwidth(runs[who], result), least
    for who, peer in PEERS.items():
        if who in runs and peer in runs and not runs[who]["on_disk"]:
            for users, least in OF_PEER.items():
                if users in runs[who]["levels"]:
                    yield f"{who} / {peer}, {users} user(s)", _ratio(runs, who, peer, users), least
    if "bf16" in runs and "before" in runs:
        for load, least in OF_BEFORE.items():
            if load == "prefill" or load in runs["bf16"]["levels"]:
                yield f"bf16 / before, {_title(load)}", _ratio(runs, "bf16", "before", load), least


def _with_streamed(
    runs: Mapping[str, Run], disk: float | None
) -> Iterator[tuple[str, float, float]]:
    if "bf16" not in runs or disk is None:
        return
    for users, level in runs["bf16"]["levels"].items():
        if level["read_bytes"] / disk < _DISK_BOUND * level["seconds"]:
            continue
        for who, least in STREAMED.items():
            if who in runs:
                yield f"{who} / bf16, {users} user(s)", _ratio(runs, who, "bf16", users), least


def _ratio(runs: Mapping[str, Run], who: str, other: str, load: int | str) -> float:
    ratio: float = _load(runs[who], load)["tokens_per_second"]
    return ratio / float(_load(runs[other], load)["tokens_per_second"])


def _load(run: Run, load: int | str) -> Run:
    level: Run = run["prefill"] if load == "prefill" else run["levels"][load]
    return level


def _title(load: int | str) -> str:
    return "prefill" if load == "prefill" else f"{load} user(s)"


def of_bandwidth(run: Run, result: Run) -> float:
    """Return the bytes of weights that one user's tokens read, as a share of memory bandwidth.

    Of the embeddings one row is read for each token, so they do not count.
    """
    each = run["packed"] - result["embeddings"]
    share: float = each * run["levels"][1]["tokens_per_second"] / result["bandwidth"]
    return share


def failure_of(result: Run, *, has_cgroups: bool = True) -> str | None:
    """Return why a result proves nothing; None if it does."""
    for limit, runs in result["limits"].items():
        if not any(is_served(run) for run in runs.values()):
            return f"{limit}: nothing was served."
        for who, run in runs.items():
            if why := _wrong(who, run, result, has_cgroups=has_cgroups):
                return f"{limit}: {why}"
        if why := _disagreeing(runs):
            return f"{limit}: {why}"
    return None


def _wrong(who: str, run: Run, result: Run, *, has_cgroups: bool) -> str | None:
    if not is_served(run):
        return None if who.startswith("llama") or run["refused"] else f"{who}: {run['why']}"
    if not has_cgroups:
        return None
    for load, level in run["levels"].items():
        if run["on_disk"] and not level["read_bytes"]:
            return f"{who} has weights on disk and read none with {load} user(s)."
    if 1 in run["levels"] and not run["on_disk"]:
        share = of_bandwidth(run, result)
        if share > _MOST_OF_BANDWIDTH:
            return f"{who} took {share:.2f} of a bandwidth that was not measured well."
    return None


def _disagreeing(runs: Mapping[str, Run]) -> str | None:
    """Return a sentence if llama.cpp's file in bfloat16 is of another model than ours."""
    one, other = runs.get("bf16"), runs.get(PEERS["bf16"])
    if is_served(one) and is_served(other) and agreement(one, other) < _LEAST_AGREEING:
        return "bf16 and llama bf16 do not reply alike: they are not the same model."
    return None


def agreement(one: Run, other: Run) -> float:
    """Return the fraction of first tokens that two contestants agree on."""
    pairs = list(zip(one["first_tokens"], other["first_tokens"], strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def report(result: Run) -> str:
    """Return the table of a result."""
    users = sorted(
        {
            count
            for runs in result["limits"].values()
            for run in runs.values()
            for count in run.get("levels", {})
        }
    )
    columns = [*_COLUMNS, *(f"{count} user(s)" for count in users), "prompt", *_LAST]
    rows = [
        _row(limit, who, run, runs, users)
        for limit, runs in result["limits"].items()
        for who, run in runs.items()
    ]
    before, after = result["machine"]
    disk = f"{result['disk'] / 1e9:.2f} GB/s" if result["disk"] else "not measured"
    lines = [
        f"A Llama of {mib(result['weights'])} in bfloat16",
        "",
        table(columns, rows),
        "",
        *(_target_line(target) for target in result["targets"]),
        "",
        "users: tokens/s of all replies together; prompt: tokens/s of a long one. start: seconds",
        "until ready from a cold page cache; before it those of the first start, which quantises.",
        "with cache: most memory, mapped files included. read: bytes from disk for a token",
        "of one user. equal: first tokens equal to bf16's.",
        f"bandwidth: memory {result['bandwidth'] / 1e9:.1f} GB/s, disk {disk}.",
        f"processor: {result['processor']}.",
        f"machine: {before} at the start, {after} at the end.",
    ]
    return "\n".join(lines)


_COLUMNS = ("contestant", "weights", "on disk", "anon. peak", "with cache", "start")
_LAST = ("read", "equal")


def _row(limit: str, who: str, run: Run, runs: Mapping[str, Run], users: list[int]) -> list[str]:
    name = f"{who}, {limit}"
    if not is_served(run):
        outcome = "refused" if run["refused"] else "failed"
        return [name, "-", "-", "-", "-", outcome, *("-" for _ in users), "-", "-", "-"]
    levels = [run["levels"].get(count) for count in users]
    first, base = run.get("first_ready_seconds"), runs.get("bf16")
    alone = run["levels"].get(1)
    return [
        name,
        mib(run["packed"]),
        mib(run["on_disk"]),
        mib(run["peak"]) if run["peak"] else "-",
        mib(run["charged"]) if run["charged"] else "-",
        f"{first:.1f}, {run['ready_seconds']:.1f} s" if first else f"{run['ready_seconds']:.1f} s",
        *(f"{level['tokens_per_second']:.2f}" if level else "-" for level in levels),
        f"{run['prefill']['tokens_per_second']:.0f}",
        mib(alone["read_bytes"] / alone["tokens"]) if alone else "-",
        f"{100 * agreement(run, base):.0f} %" if is_served(base) else "-",
    ]


def _target_line(target: Run) -> str:
    verdict = "reached" if target["reached"] else "MISSED"
    return f"{target['what']}: {target['measured']:.2f}, target {target['target']:g}: {verdict}"
