"""A model that is bigger than its pod: the predictor compared with transformers alone.

Makes a random Llama of some gigabytes. Each contestant gives the same greedy reply, in a fresh
process, in a fresh memory cgroup that is too small for the model, from a cold page cache:

- ``predictor``: plans for the group's limit, keeps a fixed part resident, streams the rest.
- ``plain``: ``from_pretrained(device_map="auto")``, which uses the memory of the host.
- ``by-hand``: the same with ``max_memory`` set to the limit less the process.

Rounds are interleaved and their order rotates; ratios are formed within a round. Needs root.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint import Size, drop_from_cache, make, read_speed
from contestants import CONTESTANTS
from groups import memory_group
from measuring import (
    CannotMeasure,
    Finished,
    add_path_flags,
    compile_modules,
    finish,
    machine,
    mib,
    run,
    table,
)

BASELINE = "plain"
Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and returns the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--limit", type=float, default=1.6, help="GiB of each contestant's cgroup")
    add("--hidden", type=int, default=1536, help="width of the model, a multiple of 512")
    add("--blocks", type=int, default=22, help="blocks of the model")
    add("--vocabulary", type=int, default=4096, help="tokens of the model")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    add("--tokens", type=int, default=4, help="new tokens; the first is timed apart")
    add("--rounds", type=int, default=3, help="runs of each contestant")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A contestant did not do the measured work.
    """
    if flags.tokens < 2 or flags.rounds < 1 or flags.hidden % 512:
        raise CannotMeasure("It takes 2 tokens, 1 round and a width that is a multiple of 512.")
    limit, before = int(flags.limit * 2**30), machine()
    with memory_group(limit, mounts=flags.mounts):
        pass  # fail before gigabytes are written for nothing
    compile_modules([sys.executable, "-c", "import predictor.startup"])
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="contrast-") as work:
        folder = Path(work) / "model"
        folder.mkdir()
        weights = make(folder, Size(flags.hidden, flags.blocks, flags.vocabulary, flags.dtype))
        rounds, speeds = [], []
        for index in range(flags.rounds):
            speeds.append(read_speed(folder))
            rounds.append(_round(folder, limit, flags, index))
    result = _summary(rounds, weights, limit, flags.tokens)
    result |= {"disk_bytes_per_second": speeds, "machine": [before, machine()], "rounds": rounds}
    print(_report(result, flags.dtype))
    return result | {"failure": failure_of(rounds)}


def _round(folder: Path, limit: int, flags: argparse.Namespace, index: int) -> dict[str, Run]:
    """Run every contestant once, each round beginning with another."""
    names = flags.contestants
    start = index % len(names)
    return {name: _run(name, folder, limit, flags) for name in (*names[start:], *names[:start])}


def _run(name: str, folder: Path, limit: int, flags: argparse.Namespace) -> Run:
    drop_from_cache(folder)
    script = str(Path(__file__).with_name("contestants.py"))
    argv = [sys.executable, script, name, str(folder), f"--limit={limit}"]
    with memory_group(limit, mounts=flags.mounts) as group:
        finished = run(group.command([*argv, f"--tokens={flags.tokens}"]), watch=group.sample)
        killed = group.oom_kills()
        numbers: Run = {
            "oom_kills": killed,
            "peak": group.peak(),
            "anonymous": group.anonymous_peak,
        }
    numbers["survived"] = not (killed and finished.returncode == -signal.SIGKILL)
    if numbers["survived"]:
        numbers |= _result(name, finished, group.folder.name, flags.tokens)
    if numbers["peak"] > limit:
        raise CannotMeasure(f"{name} held {numbers['peak']} bytes: its limit was not in force.")
    return numbers


def _result(name: str, finished: Finished, group: str, tokens: int) -> Run:
    """Return a contestant's output after checking that it did the measured work."""
    if finished.returncode != 0:
        raise CannotMeasure(
            f"{name} ended with status {finished.returncode}: {finished.last_words}"
        )
    result: Run = json.loads(finished.stdout.strip().splitlines()[-1])
    if group not in result.pop("group"):
        raise CannotMeasure(f"{name} did not run in its memory cgroup.")
    counts = len(result["tokens"]), len(result["per_token"])
    if counts != (tokens, tokens):
        raise CannotMeasure(
            f"{name} gave {counts[0]} tokens and {counts[1]} were timed, not {tokens}."
        )
    decoded = result["per_token"][1:]
    for key in ("seconds", "read_bytes", "cpu_seconds", "major_faults"):
        result[f"{key}_per_token"] = statistics.median(token[key] for token in decoded)
    return result


def _summary(
    rounds: Sequence[Mapping[str, Run]], weights: int, limit: int, tokens: int
) -> dict[str, Any]:
    return {
        "limit": limit,
        "weights": weights,
        "tokens": tokens,
        "contestants": {name: _medians([one[name] for one in rounds]) for name in rounds[0]},
        "ratios": {name: _ratios(rounds, name) for name in rounds[0]},
    }


def _medians(runs: Sequence[Run]) -> dict[str, Any]:
    """Return a contestant's numbers over all rounds; peaks are the highest."""
    alive = [run for run in runs if run["survived"]]
    keys = ("ready_seconds", "seconds_per_token", "cpu_seconds_per_token", "read_bytes_per_token")
    return {
        "survived": len(alive),
        "oom_killed": len(runs) - len(alive),
        "peak": max(run["peak"] for run in runs),
        "anonymous": max(run["anonymous"] for run in runs),
        **{
            key: statistics.median(run[key] for run in alive) if alive else None
            for key in (*keys, "on_disk")
        },
    }


def _ratios(rounds: Sequence[Mapping[str, Run]], name: str) -> dict[str, float | None]:
    """Return the medians of a contestant's costs divided by the baseline's of the same round."""
    pairs = [
        (one[name], one[BASELINE])
        for one in rounds
        if one[name]["survived"] and one[BASELINE]["survived"]
    ]

    def ratio(of: Callable[[Run], float], choose: Any = statistics.median) -> float | None:
        ratios = [of(own) / of(base) for own, base in pairs if of(base)]
        return choose(ratios) if ratios else None

    return {
        "seconds_per_token": ratio(lambda run: run["seconds_per_token"]),
        "seconds_per_token_least": ratio(lambda run: run["seconds_per_token"], min),
        "seconds_per_token_most": ratio(lambda run: run["seconds_per_token"], max),
        "read_bytes_per_token": ratio(lambda run: run["read_bytes_per_token"]),
        "ready_seconds": ratio(lambda run: run["ready_seconds"]),
    }


def failure_of(rounds: Sequence[Mapping[str, Run]]) -> str | None:
    """Return why these runs are no comparison; None if they are one."""
    runs = [(name, run) for one in rounds for name, run in one.items() if run["survived"]]
    survivors = {name for name, _ in runs}
    if len(survivors) < 2:
        return f"Only {len(survivors)} of the contestants survived: there is nothing to compare."
    replies = {tuple(run["tokens"]) for _, run in runs}
    if len(replies) > 1:
        return f"The contestants gave {len(replies)} different replies to one prompt."
    if len(set(next(iter(replies)))) < 2:
        return "All tokens of the reply are the same, so that equal replies prove nothing."
    if not any(run["on_disk"] for name, run in runs if name == "predictor"):
        return "The predictor offloaded nothing to disk: make the model larger or the limit less."
    return None


_COLUMNS = (
    "contestant",
    "survived",
    "ready s",
    "s/token",
    "x plain",
    "range",
    "CPU s/token",
    "read/token",
    "x plain",
    "GB/s",
    "on disk",
    "anon. peak",
    "group peak",
)


def _report(result: Mapping[str, Any], dtype: str) -> str:
    rows = [
        _row(name, medians, result["ratios"][name])
        for name, medians in result["contestants"].items()
    ]
    count = len(result["rounds"])
    speeds = ", ".join(f"{speed / 1e9:.2f}" for speed in result["disk_bytes_per_second"])
    before, after = result["machine"]
    return "\n".join(
        [
            f"A Llama of {mib(result['weights'])} in {dtype} in a pod of {mib(result['limit'])}, "
            f"{result['tokens']} tokens, medians of {count} round(s)",
            "",
            table(_COLUMNS, rows),
            "",
            "s/token: median after the first token. x plain: ratio within a round, and its range",
            "over the rounds. read/token: from /proc/self/io. GB/s: read/token per s/token. on",
            "disk: offloaded weights. anon. peak: sampled memory that cannot be reclaimed.",
            "group peak: includes page cache, which fills any limit. ready: load and a first reply",
            "of 2 tokens. No contestant can use a GPU.",
            "Cold start: before each run the checkpoint is fsynced and dropped from the page cache",
            "with posix_fadvise(DONTNEED), which is checked with mincore.",
            f"Disk, one cold sequential read per round: {speeds} GB/s.",
            f"machine: {before} at the start, {after} at the end.",
        ]
    )


def _row(name: str, medians: Mapping[str, Any], ratios: Mapping[str, float | None]) -> list[str]:
    runs = medians["survived"] + medians["oom_killed"]
    dead = medians["survived"] == 0
    costs = [
        _number(medians["ready_seconds"]),
        _number(medians["seconds_per_token"]),
        _number(ratios["seconds_per_token"]),
        _range(ratios["seconds_per_token_least"], ratios["seconds_per_token_most"]),
        _number(medians["cpu_seconds_per_token"]),
        "-" if dead else mib(medians["read_bytes_per_token"]),
        _number(ratios["read_bytes_per_token"]),
        "-"
        if dead
        else f"{medians['read_bytes_per_token'] / medians['seconds_per_token'] / 1e9:.2f}",
        "-" if dead else mib(medians["on_disk"]),
    ]
    survived = f"{medians['survived']} of {runs}"
    return [name, survived, *costs, mib(medians["anonymous"]), mib(medians["peak"])]


def _range(least: float | None, most: float | None) -> str:
    return "-" if least is None or most is None else f"{least:.2f} to {most:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
