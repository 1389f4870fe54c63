"""A system prompt that users share: the time to their first token, in passes over the weights.

A random Llama with most of its blocks on disk, in a memory cgroup, is served with the prefix cache
and without it. The first request has the system prompt alone. Then so many users at one time ask
with the system prompt and a question of their own. A pass is the time from one token of a single
reply to the next, which is the time to read the offloaded blocks once.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint import OFFLOADED, Size, make
from counters import PASSES, read_counters
from load import Prompt, Server, send, send_all
from measuring import add_path_flags, finish, machine, table
from prompts import Prompts
from served import add_memory_flags, serve_model

TARGET_PASSES = 1.2
"""Most passes to the first token of a request whose system prompt is cached."""

_TINY = Size(512, 6, 512, "bfloat16")
_NEW_TOKENS = 8
_CACHE = {"with": "--prefix_cache=true", "without": "--prefix_cache=false"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--users", type=int, nargs="+", help="at one time (default: 1 4 16)")
    add("--shared", type=int, help="tokens of the system prompt (default: 2048)")
    add("--own", type=int, help="tokens of a question (default: 16)")
    add("--quick", action="store_true", help="a tiny model in memory; proves nothing")
    add_memory_flags(parser, limit=2.0, budget=1.3)
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A server or a request failed.
    """
    flags.users = flags.users or ([1, 2] if flags.quick else [1, 4, 16])
    flags.shared = flags.shared or (64 if flags.quick else 2048)
    flags.own = flags.own or 16
    before, measured = machine(), {}
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="prefixes-") as work:
        model = Path(work) / "model"
        model.mkdir()
        size = _TINY if flags.quick else OFFLOADED
        make(model, replace(size, positions=_longest(flags)))
        for cache, flag in _CACHE.items():
            measured[cache] = _measure(flag, model, flags, Path(work))
    passes = {level["users"]: level["passes"] for level in measured["with"]["levels"]}
    result = {"measured": measured, "target": TARGET_PASSES, "machine": [before, machine()]}
    print(_report(result, flags))
    missed = [users for users, count in passes.items() if count > TARGET_PASSES]
    return result | {"missed": missed, "failure": None}


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured values beside their targets."""
    return [
        {
            "what": f"{level['users']} users: passes to the first token",
            "target": f"<= {TARGET_PASSES:g}",
            "measured": level["passes"],
            "reached": level["passes"] <= TARGET_PASSES,
        }
        for level in result["measured"]["with"]["levels"]
    ]


def _longest(flags: argparse.Namespace) -> int:
    return 2 * int(flags.shared + flags.own + 2 * _NEW_TOKENS)  # words have a token or two


def _measure(flag: str, model: Path, flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    settings = [f"--max_model_len={_longest(flags)}", flag]
    settings += [f"--max_concurrency={max(flags.users)}", "--max_batch_size=64"]
    prompts = Prompts(model, flags.own)
    with serve_model(model, settings, flags, work, in_memory=flags.quick) as server:
        return _requests(server, prompts, flags)


def _requests(server: Server, prompts: Prompts, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of a pass, of the system prompt, and of each number of users."""
    alone = asyncio.run(send(server, prompts.take(1, seed=-1)[0], 4 * _NEW_TOKENS))
    one_pass = statistics.median(alone.gaps)
    system = prompts.take(1, seed=0, tokens=flags.shared)[0]
    cold = asyncio.run(send(server, system, 1)).first
    levels = []
    for users in flags.users:
        own = prompts.take(users, seed=users)
        whole = [_joined(system, each, prompts) for each in own]
        before = read_counters(server)
        replies = asyncio.run(send_all(server, [[each] for each in whole], _NEW_TOKENS))
        run = read_counters(server).since(before)[PASSES]
        first = statistics.median(reply.first for reply in replies)
        last = max(reply.first for reply in replies) / one_pass
        levels.append(
            {"users": users, "first": first, "passes": first / one_pass, "last": last, "run": run}
        )
        print(
            f"{users} users: {first / one_pass:.2f} passes, the last {last:.2f}, {run:.0f} in all",
            file=sys.stderr,
            flush=True,
        )
    return {"pass": one_pass, "cold": cold, "levels": levels}


def _joined(system: Prompt, own: Prompt, prompts: Prompts) -> Prompt:
    joined = Prompt(f"{system.text} {own.text}", 0)
    return Prompt(joined.text, len(prompts.ids(joined)))


def _report(result: Mapping[str, Any], flags: argparse.Namespace) -> str:
    rows = []
    for cache, measured in result["measured"].items():
        cold = [cache, "system prompt alone", f"{measured['cold']:.2f}"]
        rows.append([*cold, f"{measured['cold'] / measured['pass']:.2f}"])
        for level in measured["levels"]:
            what = f"{level['users']} user(s)"
            rows.append([cache, what, f"{level['first']:.2f}", f"{level['passes']:.2f}"])
    reached = all(
        level["passes"] <= TARGET_PASSES for level in result["measured"]["with"]["levels"]
    )
    before, after = result["machine"]
    return "\n".join(
        [
            f"A system prompt of {flags.shared} tokens, and {flags.own} tokens of each user",
            "",
            table(("prefix cache", "request", "first token, s", "passes"), rows),
            "",
            f"target: at most {TARGET_PASSES} passes: {'reached' if reached else 'MISSED'}",
            f"machine: {before} at the start, {after} at the end.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
