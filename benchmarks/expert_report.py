"""The verdicts and the table of `experts.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from measuring import mib, table

SPEED_UPS = {1: 6.0, 8: 2.0, 32: 0.97}
"""Least tokens per second as a multiple of whole blocks', by the number of users."""

PREFILL, EXCESS, OF_LIMIT = 0.97, 1.1, 0.85
"""The same for a long prompt; most bytes read, as a multiple of those of the missing experts; least
share of the limit."""

_MOST_OF_LIMIT = 1.1
"""A larger share of the limit is an error of measurement."""

Run = Mapping[str, Any]


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was measured with skewed routing beside what was hoped for."""
    runs, expert = result["runs"]["skewed"], result["expert"]
    if "experts" not in runs:
        return []
    mine, whole = runs["experts"], runs.get("whole")
    reached = []
    if whole:
        for users in sorted(set(SPEED_UPS) & set(mine["levels"])):
            speed_up = _ratio(mine["levels"][users], whole["levels"][users])
            reached.append(_target(f"x whole blocks, {users} user(s)", speed_up, SPEED_UPS[users]))
        reached.append(
            _target("x whole blocks, prefill", _ratio(mine["prefill"], whole["prefill"]), PREFILL)
        )
    for users, level in mine["levels"].items():
        share = of_limit(level, result["bytes_per_second"])
        reached.append(_target(f"of the limit, {users} user(s)", share, OF_LIMIT))
    for users, level in mine["levels"].items():
        reached.append(
            _target(f"x missing experts' bytes, {users} user(s)", _excess(level, expert), -EXCESS)
        )
    return reached


def _target(what: str, value: float | None, bound: float) -> dict[str, Any]:
    """Return a target; a negative bound is the most that is allowed."""
    at_most = bound < 0
    reached = value is not None and (value <= -bound if at_most else value >= bound)
    text = f"<= {-bound:g}" if at_most else f">= {bound:g}"
    return {"what": what, "target": text, "measured": value, "reached": reached}


def _ratio(one: Run, other: Run) -> float:
    ratio: float = one["tokens_per_second"] / other["tokens_per_second"]
    return ratio


def _excess(level: Run, expert: int) -> float | None:
    """Return the bytes read as a multiple of those of the experts that were not in slots."""
    missing = level["misses"] * expert
    return level["read_bytes"] / missing if missing else None


def of_limit(level: Run, bytes_per_second: float) -> float:
    """Return the longer of computing and reading as a fraction of the time."""
    read_seconds = level["read_bytes"] / bytes_per_second
    share: float = max(read_seconds, level["compute_seconds"]) / level["seconds"]
    return share


def failure_of(result: Mapping[str, Any]) -> str | None:
    """Return why a result proves nothing; None if it does."""
    runs = result["runs"]["skewed"]
    if not any(run["survived"] for name, run in runs.items() if name != "experts"):
        return "There is nothing to compare with."
    for run in (run for name, run in runs.items() if name == "experts"):
        for users, level in run["levels"].items():
            if not level["hits"] + level["misses"]:
                return f"No expert was counted with {users} user(s)."
            if not level["misses"]:
                return "Every expert stayed in memory: give a smaller --limit."
    if result["limit"] and (share := _largest_share(result)) > _MOST_OF_LIMIT:
        return f"A load took {share:.2f} of the limit, so that the device's speed was not measured."
    return None


def _largest_share(result: Mapping[str, Any]) -> float:
    speed = result["bytes_per_second"]
    return max(
        (
            of_limit(level, speed)
            for runs in result["runs"].values()
            for run in runs.values()
            for level in (*run.get("levels", {}).values(), run.get("prefill", {}))
            if "compute_seconds" in level
        ),
        default=0.0,
    )


def report(result: Mapping[str, Any]) -> str:
    """Return the table of a result."""
    where = mib(result["limit"]) if result["limit"] else "no cgroup (proves nothing)"
    rows = [
        row
        for routing, runs in result["runs"].items()
        for name, run in runs.items()
        for row in _rows(f"{name}, {routing}", run, runs.get("whole"), result)
    ]
    before, after = result["machine"]
    speed = result["bytes_per_second"]
    bandwidth = f"{speed / 1e9:.2f} GB/s" if speed else "not measured, as no server ran"
    lines = [
        f"A Qwen3-MoE of {mib(result['weights'])} in {where}; {_mib(result['expert'])} an expert",
        "",
        *(_routing_line(name, routing) for name, routing in result["routings"].items()),
        "",
        table(_COLUMNS, rows),
        "",
        *(_target_line(target) for target in result["targets"]),
        "",
        "tokens/s: of all replies together; of a long prompt, its tokens. read: bytes from disk",
        "for each token, as the kernel counts them. hits: of the experts used. x missing: bytes",
        "read as a multiple of those of the experts that were not in memory. of limit:",
        "max(computing, reading the same bytes at the device's own bandwidth) / time. Peers: a",
        "median pass.",
        f"device's own bandwidth, the best of direct reads around each server: {bandwidth}.",
        f"machine: {before} at the start, {after} at the end.",
    ]
    return "\n".join(lines)


_COLUMNS = ("contestant", "load", "tokens/s", "x whole", "read", "hits", "x missing", "of limit")


def _rows(name: str, run: Run, whole: Run | None, result: Run) -> list[list[str]]:
    if not run["survived"]:
        return [[name, "-", "killed", "-", "-", "-", "-", "-"]]
    loads = [(f"{users} user(s)", level, users) for users, level in run["levels"].items()]
    loads.append(("prefill", run["prefill"], None))
    rows = []
    for load, level, users in loads:
        other = None
        if whole:
            other = whole["prefill"] if users is None else whole["levels"].get(users)
        used = level.get("hits", 0) + level.get("misses", 0)
        rows.append(
            [
                name,
                load,
                f"{level['tokens_per_second']:.2f}",
                _number(_ratio(level, other) if other else None),
                _mib(level["read_bytes"] / level["tokens"]),
                f"{100 * level['hits'] / used:.0f} %" if used else "-",
                _number(_excess(level, result["expert"]) if used else None),
                _number(_share(level, result)),
            ]
        )
    return rows


def _mib(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


def _routing_line(name: str, routing: Mapping[str, Any]) -> str:
    caches = "; ".join(
        f"{cache['slots']} slots ({100 * cache['share']:.0f} %) would hit"
        f" {100 * _first(cache['policy']):.0f} %, LRU {100 * _first(cache['lru']):.0f} %"
        for cache in routing["caches"]
    )
    unions = ", ".join(f"{users}: {union:.1f}" for users, union in routing["union"].items())
    return (
        f"{name} routing: {100 * routing['overlap']:.0f} % of a token's experts are of the token "
        f"before too; the most used quarter has {100 * routing['skew']:.0f} % of uses;\n"
        f"  with 1 user {caches};\n  experts of a pass by users: {unions}."
    )


def _first(by_users: Mapping[str, float]) -> float:
    return next(iter(by_users.values()))


def _target_line(target: Mapping[str, Any]) -> str:
    measured = "-" if target["measured"] is None else f"{target['measured']:.2f}"
    verdict = "reached" if target["reached"] else "MISSED"
    return f"{target['what']}: {measured}, target {target['target']}: {verdict}"


def _share(level: Run, result: Run) -> float | None:
    if "compute_seconds" not in level:
        return None
    return of_limit(level, result["bytes_per_second"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
