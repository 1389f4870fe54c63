"""Prefill of long prompts by an offloaded model: chunks as large as pay, and fixed ones.

A random Llama is served with most of its blocks on disk, in a memory cgroup: once as it is by
default, with chunks for which the plan has memory and that pay by the costs measured at the start,
and once with `--max_prefill_chunk` of 512. Each prompt is a new one, and nobody else is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint import OFFLOADED, Size, make
from counters import PASSES, read_counters
from load import Server, await_quiet, measure_users
from measuring import add_path_flags, finish, machine, table
from prompts import Prompts
from served import add_memory_flags, serve_model

_TINY = Size(512, 6, 2048, "bfloat16")
_FIXED, _TINY_FIXED = 512, 16

Figures = dict[int, dict[str, float]]
"""Seconds to the first token, tokens per second and forward passes, by tokens of the prompt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--users", type=int, nargs="+", help="ignored: one user at a time")
    add("--tokens", type=int, nargs="+", help="of a prompt (default: 2048 8192)")
    add("--rounds", type=int, help="how often all is measured (default: 3)")
    add("--wait", type=float, default=30.0, help="seconds to wait for idle processors")
    add("--quick", action="store_true", help="a tiny model and short prompts; proves nothing")
    add_memory_flags(parser, limit=1.8, budget=1.1)
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A server or a request failed.
    """
    flags.tokens = flags.tokens or ([48, 96] if flags.quick else [2048, 8192])
    flags.rounds = flags.rounds or (1 if flags.quick else 3)
    fixed = _TINY_FIXED if flags.quick else _FIXED
    ways = {"fixed": f"--max_prefill_chunk={fixed}", "as pays": f"--max_prefill_chunk={16 * fixed}"}
    before, measured = machine(), {}
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="prefill-") as work:
        model = Path(work) / "model"
        model.mkdir()
        size = _TINY if flags.quick else OFFLOADED
        make(model, replace(size, positions=_longest(flags)))
        for way, flag in ways.items():
            settings = [f"--prefill_chunk={fixed}", flag]
            measured[way] = _measure(settings, model, flags, Path(work))
    ratios = {
        tokens: measured["as pays"][tokens]["tokens_per_second"]
        / measured["fixed"][tokens]["tokens_per_second"]
        for tokens in flags.tokens
    }
    result = {"measured": measured, "ratios": ratios, "machine": [before, machine()]}
    print(_report(result))
    return result | {"failure": None}


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG001
    """Return nothing: the figures are to be known, and chunks may not pay."""
    return []


def _longest(flags: argparse.Namespace) -> int:
    return int(max(flags.tokens)) + 64


def _measure(
    settings: Sequence[str], model: Path, flags: argparse.Namespace, work: Path
) -> Figures:
    """Return the median of all rounds."""
    settings = [f"--max_model_len={_longest(flags)}", *settings]
    settings += ["--max_concurrency=1", f"--offload_folder={work / 'offload'}"]
    settings.append("--prefix_cache=false")
    if flags.quick:
        settings.append(f"--max_memory={json.dumps({'cpu': '24MiB'})}")
    with serve_model(model, settings, flags, work, in_memory=flags.quick) as server:
        prompts = Prompts(model, max(flags.tokens))
        measure_users(server, [prompts.take(1, seed=-1, tokens=8)], 2)  # warms up
        rounds = [_round(server, prompts, flags, number) for number in range(flags.rounds)]
    return {
        tokens: {
            figure: statistics.median(each[tokens][figure] for each in rounds)
            for figure in rounds[0][tokens]
        }
        for tokens in flags.tokens
    }


def _round(server: Server, prompts: Prompts, flags: argparse.Namespace, number: int) -> Figures:
    figures: Figures = {}
    for tokens in flags.tokens:
        prompt = prompts.take(1, seed=100 * number + tokens, tokens=tokens)
        await_quiet(0 if flags.quick else flags.wait, server.pid)
        before = read_counters(server)
        first = measure_users(server, [prompt], 1)["first_token_seconds"]["p50"]
        passes = read_counters(server).since(before)[PASSES]
        speed = prompt[0].tokens / first
        figures[tokens] = {"first_token": first, "tokens_per_second": speed, "passes": passes}
        print(f"{tokens} tokens: {first:.2f} s, {passes:.0f} passes", file=sys.stderr, flush=True)
    return figures


def _report(result: Mapping[str, Any]) -> str:
    rows = [
        [
            way,
            str(tokens),
            f"{figures['first_token']:.2f}",
            f"{figures['tokens_per_second']:.1f}",
            f"{figures['passes']:.0f}",
            f"{result['ratios'][tokens]:.2f}" if way != "fixed" else "",
        ]
        for way, levels in result["measured"].items()
        for tokens, figures in levels.items()
    ]
    head = ("chunks", "prompt", "first token, s", "tokens/s", "passes", "x fixed")
    before, after = result["machine"]
    return "\n".join(
        [table(head, rows), "", f"machine: {before} at the start, {after} at the end."]
    )


if __name__ == "__main__":
    sys.exit(main())
