"""Many users at once: `predictor serve` compared with `generate`, which serves one at a time.

For each part, the same model in the same placement with the same number of threads:

- ``resident``: a random Llama of 1.1 billion parameters (TinyLlama's shape) in main memory.
- ``demo``: the demo model.
- ``offloaded``: the Llama with most blocks on disk, both contestants in a memory cgroup that leaves
  little page cache; needs root.

The server is a process, reached over HTTP. Users stream their replies, and each sends its next
request when the last reply has ended. ``resident`` also measures the time to the first token of a
short prompt that arrives during the prefill of a long one.

Further parts compare the server with itself: with and without what they are about. Each is a
benchmark of its own, see `serving_parts`. They run only if they are named.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import Size, drop_from_cache, make
from groups import MemoryGroup, memory_group
from load import (
    QUIET,
    Prompt,
    Reply,
    Server,
    await_quiet,
    measure_users,
    others_seconds,
    send,
    speed,
)
from measuring import ROOT, CannotMeasure, add_path_flags, finish, machine, mib, run, table
from prompts import Prompts
from served import check_placement, serve
from serving_parts import MORE_PARTS, measure_more

PARTS = ("resident", "demo", "offloaded")
TARGETS = {
    ("resident", 1): 0.95,
    ("resident", 16): 8.0,
    ("offloaded", 16): 10.0,
}
"""Least tokens per second, as multiples of the baseline's, by part and number of users."""

TARGET_CHUNKS = 2.0
"""Most time to the first token of a short prompt beside a long one, in chunks of prefill."""

LLAMA = Size(2048, 22, 32000, "bfloat16", head=64, heads_per_key=8, mlp=5632)
TINY = Size(512, 24, 512, "bfloat16")
_CHUNK, _LONG, _SHORT = 512, 1500, 16
_LOOKAHEAD = 16


@dataclass(frozen=True, slots=True)
class Part:
    """A model and its serving options.

    Attributes:
        name: One of `PARTS`.
        model: Its folder.
        users: The numbers of concurrent users, one measurement for each.
        new_tokens: New tokens of each request.
        length: The setting `max_model_len`.
        flags: Further flags of the predictor.
        exact: Whether every reply must have all its tokens, because no token can end it.
    """

    name: str
    model: Path
    users: tuple[int, ...]
    new_tokens: int
    length: int
    flags: tuple[str, ...] = ()
    exact: bool = True

    def settings(self, prompt_tokens: int) -> list[str]:
        """Return the predictor's flags, with a KV cache for all users at once."""
        each = prompt_tokens + self.new_tokens + _LOOKAHEAD
        concurrency = -(-max(self.users) * each // self.length)
        return [
            f"--model_dir={self.model}",
            f"--max_model_len={self.length}",
            f"--max_concurrency={concurrency}",
            f"--prefill_chunk={_CHUNK}",
            "--max_batch_size=64",
            "--max_requests=128",
            *self.flags,
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and returns the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    every = ",".join((*PARTS, *MORE_PARTS))
    add("--parts", type=_parts, default=PARTS, help=f"of {every} (default: {','.join(PARTS)})")
    add("--users", type=_numbers, help="users at a time (default: 1,4,16,64; offloaded 1,4,16)")
    add("--prompt_tokens", type=int, help="tokens of a prompt (default: 32)")
    add("--new_tokens", type=int, help="tokens of a reply (default: 64; offloaded 16)")
    add("--limit", type=float, help="GiB of the offloaded part's cgroup (default: 1.6)")
    add("--budget", type=float, help="GiB of main memory to plan for there (default: 0.9)")
    add("--quick", action="store_true", help="a tiny model and few tokens; proves nothing")
    add(
        "--wait", type=float, default=60, help="most seconds to wait for a quiet machine, each time"
    )
    add_path_flags(parser)
    return parser


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= {*PARTS, *MORE_PARTS}:
        raise argparse.ArgumentTypeError(f"parts are {', '.join((*PARTS, *MORE_PARTS))}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("it takes one user at least")
    return numbers


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: Not even one part could be measured.
    """
    before, measured, failures = machine(), {}, []
    more, more_targets = measure_more(flags, failures)
    _fill_in(flags)
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="serving-") as work:
        for part in _plans(flags, Path(work)):
            try:
                measured[part.name] = _measure_part(part, flags, Path(work))
            except CannotMeasure as error:
                failures.append(f"{part.name}: {error}")
    targets = [*_targets(measured), *more_targets]
    result = {"parts": measured, "targets": targets, "machine": [before, machine()]}
    print(_report(result, flags))
    return result | {"more": more, "failure": " ".join(failures) or None}


def _fill_in(flags: argparse.Namespace) -> None:
    quick = flags.quick
    flags.users = flags.users or ((1, 2) if quick else None)
    flags.prompt_tokens = flags.prompt_tokens or (8 if quick else 32)
    flags.new_tokens = flags.new_tokens or (4 if quick else None)
    flags.limit = flags.limit or (0.8 if quick else 1.6)
    flags.budget = flags.budget or (0.1 if quick else 0.9)


def _plans(flags: argparse.Namespace, work: Path) -> list[Part]:
    users, count = flags.users, flags.new_tokens
    made = work / "model"
    if {"resident", "offloaded"}.intersection(flags.parts):
        made.mkdir()
        make(made, TINY if flags.quick else LLAMA)
    many, some, budget = (1, 4, 16, 64), (1, 4, 16), json.dumps({"cpu": f"{flags.budget}GiB"})
    parts = [
        Part("resident", made, users or many, count or 64, 2048),
        Part(
            "demo", ROOT / "examples" / "demo-model", users or many, count or 64, 512, exact=False
        ),
        Part("offloaded", made, users or some, count or 16, 512, (f"--max_memory={budget}",)),
    ]
    return [part for part in parts if part.name in flags.parts]


def _measure_part(part: Part, flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    settings = part.settings(flags.prompt_tokens)
    prompts = Prompts(part.model, flags.prompt_tokens)
    with contextlib.ExitStack() as stack:
        group = None
        if part.name == "offloaded":
            limit = int(flags.limit * 2**30)
            group = stack.enter_context(memory_group(limit, mounts=flags.mounts))
        device_map = _device_map(settings, group)
        rounds = [_raw(part, prompts, device_map, group, work, flags.wait)]
        with serve(settings, group, work) as server:
            check_placement(server, device_map)
            measured = _levels(part, prompts, server, flags.wait)
            if part.name == "resident":
                await_quiet(flags.wait, server.pid)
                measured["short_beside_long"] = _short_beside_long(server, prompts)
        if not flags.quick:  # on a busy machine the baseline changes
            rounds.append(_raw(part, prompts, device_map, group, work, flags.wait))
    return _compare(measured, rounds)


def _compare(measured: dict[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add the ratios and the baseline's numbers, from its undisturbed rounds if there are any."""
    all_rounds = rounds
    rounds = [one for one in rounds if one["others_seconds"] / one["seconds"] <= QUIET] or rounds
    replies = [(r["first"], r["gaps"], r["tokens"]) for one in rounds for r in one["replies"]]
    seconds = sum(one["seconds"] for one in rounds)
    raw = speed(replies, seconds)
    raw["others_cpu_share"] = sum(one["others_seconds"] for one in rounds) / seconds
    raw["threads"], raw["on_disk"] = rounds[0]["threads"], rounds[0]["on_disk"]
    raw["rounds"] = [
        sum(reply["tokens"] for reply in one["replies"]) / one["seconds"] for one in all_rounds
    ]
    for level in measured["levels"]:
        level["x_raw"] = level["tokens_per_second"] / raw["tokens_per_second"]
        level["disturbed"] = max(level["others_cpu_share"], raw["others_cpu_share"]) > QUIET
    return {"raw": raw, **measured}


def _requests_each(part: Part, users: int) -> int:
    """Return the requests of each user: few if there are many users or requests are slow."""
    return 1 if part.name == "offloaded" else max(1, min(3, 32 // users))


def _levels(part: Part, prompts: Prompts, server: Server, wait: float) -> dict[str, Any]:
    measure_users(server, [prompts.take(1, seed=-1)], 2)  # warms up
    levels = []
    for users in part.users:
        each = _requests_each(part, users)
        taken = [prompts.take(each, seed=1000 * users + user) for user in range(users)]
        await_quiet(wait, server.pid)
        levels.append(_checked(part, measure_users(server, taken, part.new_tokens)))
        _print_progress(f"{part.name}, {users} users", levels[-1])
    return {"levels": levels, "new_tokens": part.new_tokens}


def _checked(part: Part, measured: dict[str, Any]) -> dict[str, Any]:
    counts = measured["tokens_per_request"]
    if part.exact and counts != [part.new_tokens, part.new_tokens]:
        raise CannotMeasure(f"Replies have {counts} tokens, not {part.new_tokens}.")
    return measured


def _raw(
    part: Part,
    prompts: Prompts,
    device_map: Mapping[str, str],
    group: MemoryGroup | None,
    work: Path,
    wait: float,
) -> dict[str, Any]:
    """Run the baseline over the prompts of the measurement with one user."""
    _drop_pages(part)
    taken = prompts.take(_requests_each(part, 1), seed=1000)
    file = work / "raw.json"
    work_order: dict[str, Any] = {
        "new_tokens": part.new_tokens,
        "device_map": device_map,
        "wait": wait,
    }
    work_order["prompts"] = [prompts.ids(prompt) for prompt in taken]
    file.write_text(json.dumps(work_order))
    script = str(Path(__file__).with_name("raw.py"))
    argv = [sys.executable, script, str(part.model), str(file)]
    measured: dict[str, Any] = json.loads(_output(argv, group, "The baseline").splitlines()[-1])
    counts = [reply["tokens"] for reply in measured["replies"]]
    _checked(part, {"tokens_per_request": [min(counts), max(counts)]})
    others = measured["others_seconds"] / measured["seconds"]
    each = {"tokens_per_second": sum(counts) / measured["seconds"], "others_cpu_share": others}
    _print_progress(f"{part.name}, raw", each)
    return measured


def _print_progress(what: str, measured: Mapping[str, Any]) -> None:
    """Print progress, since the run takes minutes."""
    speed, others = measured["tokens_per_second"], measured["others_cpu_share"]
    print(f"{what}: {speed:.1f} tokens/s (others: {others:.2f})", file=sys.stderr, flush=True)


def _drop_pages(part: Part) -> None:
    """Drop an offloaded model from the page cache, as on a fresh node."""
    if part.name == "offloaded":
        drop_from_cache(part.model)


def _device_map(settings: Sequence[str], group: MemoryGroup | None) -> dict[str, str]:
    """Return the predictor's device map, which is the same when it serves."""
    if group is None:
        return {"": "cpu"}
    plan = [sys.executable, "-m", "predictor", "plan", "--output=json", *settings]
    device_map: dict[str, str] = json.loads(_output(plan, group, "predictor plan"))["device_map"]
    if "disk" not in device_map.values():
        raise CannotMeasure("Nothing is offloaded: give a smaller --budget.")
    return device_map


def _output(argv: Sequence[str], group: MemoryGroup | None, who: str) -> str:
    done = run(argv if group is None else group.command(argv))
    if done.returncode != 0:
        raise CannotMeasure(f"{who} ended with status {done.returncode}: {done.last_words}")
    return done.stdout.strip()


def _short_beside_long(server: Server, prompts: Prompts) -> dict[str, Any]:
    """Measure a short prompt that arrives early and late in a long one's chunk, and a chunk."""

    def one(tokens: int, seed: int) -> Prompt:
        return prompts.take(1, seed=seed, tokens=tokens)[0]

    began, others = time.perf_counter(), others_seconds(server.pid)
    chunks = [asyncio.run(send(server, one(_CHUNK, -seed), 1)).first for seed in (2, 3)]
    chunk = min(chunks)
    first_token_seconds = []
    for attempt, delay in enumerate((0.1, 1.1)):
        long, short = one(_LONG, -10 - attempt), one(_SHORT, -20 - attempt)
        first_token_seconds.append(asyncio.run(_during(server, long, short, delay * chunk)))
    seconds = time.perf_counter() - began
    return {
        "others_cpu_share": (others_seconds(server.pid) - others) / seconds,
        "chunk_tokens": _CHUNK,
        "long_tokens": _LONG,
        "short_tokens": _SHORT,
        "chunk_seconds": chunk,
        "first_token_seconds": first_token_seconds,
        "chunks": max(first_token_seconds) / chunk,
    }


async def _during(server: Server, long: Prompt, short: Prompt, delay: float) -> float:
    """Return the time to the first token of a prompt that is sent during another's prefill."""
    long_request = asyncio.create_task(send(server, long, 1))
    await asyncio.sleep(delay)
    reply: Reply = await send(server, short, 1)
    if (await long_request).began < reply.began:
        raise CannotMeasure("The long prompt was read before the short one had its first token.")
    return reply.first


def _targets(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured values beside their targets."""
    levels = {(name, lv["users"]): lv for name in measured for lv in measured[name]["levels"]}
    targets = [
        {
            "what": f"{key[0]}, {key[1]} users: x raw",
            "target": f">= {least:g}",
            "measured": level["x_raw"],
            "reached": level["x_raw"] >= least,
            "disturbed": level["disturbed"],
        }
        for key, least in TARGETS.items()
        if (level := levels.get(key)) is not None
    ]
    beside = measured.get("resident", {}).get("short_beside_long")
    return targets if beside is None else [*targets, _chunks_target(beside)]


def _chunks_target(beside: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "what": "short prompt beside a long one: chunks to its first token",
        "target": f"< {TARGET_CHUNKS:g}",
        "measured": beside["chunks"],
        "reached": beside["chunks"] < TARGET_CHUNKS,
        "disturbed": beside["others_cpu_share"] > QUIET,
    }


_COLUMNS = (
    "model, users",
    "requests",
    "tokens",
    "tokens/s",
    "x raw",
    "x 1 user",
    "TTFT p50",
    "p99 ms",
    "ITL p50",
    "p99 ms",
    "other CPU",
    "client CPU",
)


def _report(result: Mapping[str, Any], flags: argparse.Namespace) -> str:
    rows = [row for name, part in result["parts"].items() for row in _rows(name, part)]
    before, after = result["machine"]
    lines = [f"Prompts of about {flags.prompt_tokens} tokens, greedy", "", table(_COLUMNS, rows)]
    lines += ["", *map(_target_line, result["targets"]), ""]
    lines += [_part_line(name, part) for name, part in result["parts"].items()]
    if disturbed := [row[0] for row in rows if float(row[-2]) > QUIET]:
        lines.append(f"DISTURBED by other processes, unreliable: {'; '.join(disturbed)}")
    return "\n".join(
        [
            *lines,
            "raw: generate, one prompt after another, in a process before the server's and one",
            "after it; a disturbed one is left out if the other is not. TTFT: time to first token.",
            "ITL: inter-token latency, from one text of a reply to the next. Each request has its",
            "own connection. other CPU, client CPU: processors that other processes and the client",
            "kept busy. offloaded: both contestants in one memory cgroup; raw's weights in main",
            "memory are transformers' mapped files, whose pages the kernel evicts under pressure.",
            f"machine: {before} at the start, {after} at the end.",
        ]
    )


def _rows(name: str, part: Mapping[str, Any]) -> list[list[str]]:
    raw, levels = part["raw"], part["levels"]
    first = levels[0]["tokens_per_second"] if levels[0]["users"] == 1 else None
    rows = [[f"{name}, raw", str(raw["requests"]), *_cells(raw, "1.00", "-"), "-"]]
    for level in levels:
        ratio = f"{level['tokens_per_second'] / first:.2f}" if first else "-"
        cells = _cells(level, f"{level['x_raw']:.2f}", ratio)
        client = f"{level['client_cpu_share']:.2f}"
        rows.append([f"{name}, {level['users']}", str(level["requests"]), *cells, client])
    return rows


def _cells(measured: Mapping[str, Any], x_raw: str, x_one: str) -> list[str]:
    first, following = measured["first_token_seconds"], measured["inter_token_seconds"]
    speeds = [str(measured["tokens"]), f"{measured['tokens_per_second']:.1f}", x_raw, x_one]
    times = [_ms(part[key]) for part in (first, following) for key in ("p50", "p99")]
    return [*speeds, *times, f"{measured['others_cpu_share']:.2f}"]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f}"


def _target_line(target: Mapping[str, Any]) -> str:
    verdict = "reached" if target["reached"] else "MISSED"
    verdict += " (but DISTURBED)" if target["disturbed"] else ""
    return f"{target['what']} {target['measured']:.2f}, target {target['target']}: {verdict}"


def _part_line(name: str, part: Mapping[str, Any]) -> str:
    raw = part["raw"]
    speeds = ", ".join(f"{speed:.1f}" for speed in raw["rounds"])
    return (
        f"{name}: {raw['threads']} threads, {mib(raw['on_disk'])} of weights on disk, "
        f"{part['new_tokens']} new tokens at most; raw's runs gave {speeds} tokens/s"
    )


if __name__ == "__main__":
    sys.exit(main())
