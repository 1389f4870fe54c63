"""A model bigger than its pod: streamed by the predictor, and offloaded by Accelerate's maps.

A random Llama of 1.1 billion parameters in bfloat16 (2.2 GB) in a memory cgroup of 1.6 GiB:

- ``auto``: Accelerate's ``device_map="auto"``, which uses the memory of the host;
- ``max_memory``: the same, with the limit less the process;
- ``all disk``: everything on disk;
- ``predictor``: blocks read in place from the checkpoint;
- ``store``: the predictor's first start with an offload volume, which writes the store;
- ``again``: its second start.

Each runs alone in a fresh process from a cold page cache, in rounds; ratios are formed within a
round. The limit of a forward pass is the longer of computing (the pass less its stalls) and of
reading the bytes that are not resident at the device's own bandwidth, probed by the same process.
Needs root.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint import drop_from_cache, make
from groups import memory_group
from measuring import CannotMeasure, add_path_flags, finish, machine, mib, run, table
from serving import LLAMA, TINY
from streamers import CONTESTANTS

BASELINES = ("auto", "max_memory", "all disk")
OURS = ("predictor", "store", "again")
TARGETS = {"speed-up": 3.0, "of the limit": 0.9, "start": 1.3}
"""Least speed-up over the best Accelerate map; least fraction of the limit; most seconds until the
second start is ready, as a multiple of those to read the resident bytes."""

Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and returns the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--limit", type=float, default=1.6, help="GiB of each contestant's cgroup")
    add("--blocks", type=int, help="of the model, instead of 22 of 84 MiB each")
    add("--tokens", type=int, default=8, help="new tokens of each sequence")
    add("--sequences", type=int, nargs="+", default=[1, 8], help="at one time")
    add("--budget", type=float, help="GiB of main memory for the predictor to plan for")
    add("--rounds", type=int, default=2, help="runs of each contestant")
    add("--quick", action="store_true", help="a tiny model; proves nothing")
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A contestant did not do the measured work.
    """
    if flags.tokens < 4:
        raise CannotMeasure("It takes 4 tokens to time forward passes.")
    before, size = machine(), TINY if flags.quick else LLAMA
    size = replace(size, blocks=flags.blocks or size.blocks)
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="offload-") as work:
        folder = Path(work) / "model"
        folder.mkdir()
        weights = make(folder, size)
        rounds = [_round(folder, flags, index) for index in range(flags.rounds)]
    result: dict[str, Any] = {
        "limit": int(flags.limit * 2**30),
        "weights": weights,
        "rounds": rounds,
        "machine": [before, machine()],
    }
    result["targets"] = _targets(rounds, flags.sequences)
    print(_report(result, flags.sequences))
    return result | {"failure": _failure(rounds)}


def _round(folder: Path, flags: argparse.Namespace, index: int) -> dict[str, Run]:
    """Run every contestant once; the store's second start directly follows its first."""
    store = folder.parent / f"offload-{index}"
    parts: list[tuple[str, ...]] = [(name,) for name in (*BASELINES, "predictor")]
    parts.append(("store", "again"))
    start = index % len(parts)
    names = [name for part in (*parts[start:], *parts[:start]) for name in part]
    return {name: _run(name, folder, store, flags) for name in names}


def _run(name: str, folder: Path, store: Path, flags: argparse.Namespace) -> Run:
    drop_from_cache(folder)
    limit = int(flags.limit * 2**30)
    contestant = name if name in CONTESTANTS else "predictor"
    argv = [sys.executable, str(Path(__file__).with_name("streamers.py")), contestant, str(folder)]
    argv += [f"--limit={limit}", f"--tokens={flags.tokens}", "--sequences"]
    argv += map(str, flags.sequences)
    if flags.budget:
        argv += [f"--budget={flags.budget}GiB"]
    if name in ("store", "again"):
        argv += [f"--store={store}"]
    with memory_group(limit, mounts=flags.mounts) as group:
        finished = run(group.command(argv), watch=group.sample)
        numbers: Run = {"peak": group.anonymous_peak, "survived": True}
        if group.oom_kills() and finished.returncode == -signal.SIGKILL:
            return numbers | {"survived": False}
        if finished.returncode != 0:
            raise CannotMeasure(
                f"{name} ended with status {finished.returncode}: {finished.last_words}"
            )
        reported: Run = json.loads(finished.stdout.strip().splitlines()[-1])
        if group.folder.name not in reported.pop("group"):
            raise CannotMeasure(f"{name} did not run in its memory cgroup.")
    for sequences, level in reported["levels"].items():
        counts = {len(tokens) for tokens in level["tokens"]}
        if counts != {flags.tokens} or len(level["tokens"]) != int(sequences):
            raise CannotMeasure(f"{name} did not give {sequences} times {flags.tokens} tokens.")
    print(f"{name}: ready in {reported['ready_seconds']:.1f} s", file=sys.stderr, flush=True)
    return numbers | reported


def _failure(rounds: Sequence[Mapping[str, Run]]) -> str | None:
    """Return why these runs are no comparison; None if they are one."""
    for names in (BASELINES, OURS):
        if len(_replies(rounds, names)) > 1:
            return f"{' and '.join(names)} gave different replies to one prompt."
    # In bfloat16 two kernels round differently, and two tokens may be nearly as good.
    if len({reply[0] for reply in _replies(rounds, (*BASELINES, *OURS))}) > 1:
        return "The contestants began their replies to one prompt differently."
    for round_ in rounds:
        if not any(round_[name]["survived"] for name in BASELINES):
            return "No Accelerate map survived: there is nothing to compare with."
        for name in OURS:
            if not round_[name]["survived"]:
                return f"{name} was killed for memory."
            if round_[name]["probe"] is None:
                return f"{name} streamed nothing: give a smaller --limit."
    return None


def _replies(rounds: Sequence[Mapping[str, Run]], names: Sequence[str]) -> set[tuple[int, ...]]:
    """Return the different replies to the first prompt, alone."""
    alive = [round_[name] for round_ in rounds for name in names if round_[name]["survived"]]
    return {tuple(next(iter(run["levels"].values()))["tokens"][0]) for run in alive}


def _seconds(run: Run, sequences: int) -> float | None:
    return run["levels"][str(sequences)]["seconds"] if run["survived"] else None


def _speed_up(round_: Mapping[str, Run], name: str, sequences: int) -> float | None:
    """Return the speed-up over the best Accelerate map of the same round."""
    best = [s for base in BASELINES if (s := _seconds(round_[base], sequences)) is not None]
    own = _seconds(round_[name], sequences)
    return min(best) / own if best and own else None


def _of_the_limit(run: Run, sequences: int) -> float | None:
    """Return the longer of computing and reading as a fraction of a forward pass."""
    if not run["survived"] or not run.get("probe"):
        return None
    level, probe = run["levels"][str(sequences)], run["probe"]
    read_seconds = probe["streamed_bytes"] / probe["bytes_per_second"]
    compute_seconds = level["seconds"] - level["stall_seconds"]
    fraction: float = max(read_seconds, compute_seconds) / level["seconds"]
    return fraction


def _start(run: Run) -> float | None:
    """Return the seconds until ready, as a multiple of those to read the resident bytes."""
    if not run["survived"] or not run.get("probe"):
        return None
    probe = run["probe"]
    ratio: float = run["ready_seconds"] * probe["bytes_per_second"] / probe["resident_bytes"]
    return ratio


def _targets(rounds: Sequence[Mapping[str, Run]], sequences: Sequence[int]) -> list[dict[str, Any]]:
    """Return what was measured beside what was hoped for."""
    targets = []
    for count in sequences:
        speed_up = _median(_speed_up(one, "again", count) for one in rounds)
        targets.append(_target(f"x best Accelerate map, {count} sequence(s)", "speed-up", speed_up))
        limit = _median(_of_the_limit(one["again"], count) for one in rounds)
        targets.append(_target(f"of the limit, {count} sequence(s)", "of the limit", limit))
    start = _median(_start(one["again"]) for one in rounds)
    targets.append(_target("second start, x reading the resident bytes", "start", start))
    return targets


def _target(what: str, kind: str, value: float | None) -> dict[str, Any]:
    bound = TARGETS[kind]
    reached = value is not None and (value <= bound if kind == "start" else value >= bound)
    sign = "<=" if kind == "start" else ">="
    return {"what": what, "target": f"{sign} {bound:g}", "measured": value, "reached": reached}


def _median(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def _report(result: Mapping[str, Any], sequences: Sequence[int]) -> str:
    rounds = result["rounds"]
    columns = ["contestant", "ready s", "anon. peak"]
    for count in sequences:
        columns += [f"s/pass {count}", "x best", "read", "stall", "of limit"]
    rows = [_row(name, rounds, sequences) for name in (*BASELINES, *OURS)]
    probes = [one[name]["probe"] for one in rounds for name in OURS if one[name].get("probe")]
    speeds = ", ".join(f"{probe['bytes_per_second'] / 1e9:.2f}" for probe in probes)
    before, after = result["machine"]
    lines = [
        f"A Llama of {mib(result['weights'])} in {mib(result['limit'])}, medians of "
        f"{len(rounds)} round(s)",
        "",
        table(columns, rows),
        "",
        *(_target_line(target) for target in result["targets"]),
        "",
        f"device's own bandwidth, probed by the predictor's runs: {speeds} GB/s",
        "s/pass: median time of one forward pass. x best: speed-up over the best",
        "Accelerate map of the round. read: bytes from disk in a pass (/proc/self/io). stall: the",
        "part of a pass spent waiting for blocks. of limit: max(computing, reading) / pass.",
        f"machine: {before} at the start, {after} at the end.",
    ]
    return "\n".join(lines)


def _target_line(target: Mapping[str, Any]) -> str:
    measured = "-" if target["measured"] is None else f"{target['measured']:.2f}"
    verdict = "reached" if target["reached"] else "MISSED"
    return f"{target['what']}: {measured}, target {target['target']}: {verdict}"


def _row(name: str, rounds: Sequence[Mapping[str, Run]], sequences: Sequence[int]) -> list[str]:
    alive = [one[name] for one in rounds if one[name]["survived"]]
    row = [name, _number(_median(run["ready_seconds"] for run in alive))]
    row.append(mib(max(one[name]["peak"] for one in rounds)))
    if not alive:
        return [*row, *["killed", "-", "-", "-", "-"] * len(sequences)]
    for count in sequences:
        levels = [run["levels"][str(count)] for run in alive]
        pass_ = statistics.median(level["seconds"] for level in levels)
        stall = statistics.median(level["stall_seconds"] for level in levels) / pass_
        row += [
            _number(pass_),
            _number(_median(_speed_up(one, name, count) for one in rounds)),
            mib(statistics.median(level["read_bytes"] for level in levels)),
            f"{100 * stall:.0f} %" if name in OURS else "-",
            _number(_median(_of_the_limit(run, count) for run in alive)),
        ]
    return row


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
