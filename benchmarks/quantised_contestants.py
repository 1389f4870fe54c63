"""One contestant of `quantised.py`: the predictor or llama.cpp's server, under one load."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checkpoint import drop_from_cache
from counters import PASSES, read_bytes, read_counters
from groups import MemoryGroup, memory_group, sampled
from llama_server import LlamaServer, llama_server
from load import Prompt, Server, send_all
from measuring import ROOT, CannotMeasure
from served import serve

_MARGIN = 32
"""Positions of each user's KV cache besides its tokens."""

_COMPARED, _STEP = 8, 37
"""Prompts whose first reply tokens are compared with the peer's, and their distance."""

Run = dict[str, Any]


@contextlib.contextmanager
def _group(limit: float, flags: argparse.Namespace) -> Iterator[MemoryGroup | None]:
    if not limit:
        yield None
        return
    with memory_group(int(limit * 2**30), mounts=flags.mounts) as group, sampled(group):
        yield group


def _prompts(users: int) -> list[int]:
    """Return a prompt of one token for each user, other ones for each number of users."""
    return [1 + (_STEP * users + 11 * user) % 500 for user in range(users)]


def _long(flags: argparse.Namespace) -> list[int]:
    return [1 + 7 * at % 500 for at in range(flags.prompt)]


# The predictor


def run_predictor(who: str, model: Path, limit: float, flags: argparse.Namespace) -> Run:
    """Start the predictor in a cgroup; return its placement, its start and its speeds.

    Raises:
        CannotMeasure: It did not do the measured work.
    """
    root = flags.before if who == "before" else ROOT
    with tempfile.TemporaryDirectory(dir=model.parent, prefix="run-") as work:
        settings = _settings(who, model, Path(work), flags)
        first = None
        if who in ("int8", "int4"):
            first = _first_start(settings, model, limit, Path(work), flags)
        drop_from_cache(model)
        with _group(limit, flags) as group:
            began = time.perf_counter()
            with serve(settings, group, Path(work), root=root) as server:
                ready = time.perf_counter() - began
                facts = _placement(server) | {"first_tokens": _first_tokens(server)}
                levels = {n: _level(server, _prompts(n), flags.tokens) for n in flags.users}
                prefill = _level(server, None, 1, _long(flags))
            _check_alive(who, group)
            peaks = _peaks(group)
    seconds = {"ready_seconds": ready, "first_ready_seconds": first}
    return facts | seconds | peaks | {"levels": levels, "prefill": prefill}


def _settings(who: str, model: Path, work: Path, flags: argparse.Namespace) -> list[str]:
    length = flags.prompt + 2 * _MARGIN
    concurrency = -(-max(flags.users) * (flags.tokens + _MARGIN) // length)
    settings = [f"--model_dir={model}", f"--offload_folder={work / 'offload'}"]
    settings += [f"--max_model_len={length}", f"--max_concurrency={concurrency}"]
    settings += ["--max_batch_size=64", "--max_requests=128"]
    return settings + [f"--weights_dtype={who}"] * (who in ("int8", "int4"))


def _first_start(
    settings: Sequence[str], model: Path, limit: float, work: Path, flags: argparse.Namespace
) -> float:
    """Return the seconds of a start that finds no store."""
    drop_from_cache(model)
    with _group(limit, flags) as group:
        began = time.perf_counter()
        with serve(settings, group, work):
            seconds = time.perf_counter() - began
        _check_alive("The first start", group)
    return seconds


def _check_alive(who: str, group: MemoryGroup | None) -> None:
    if group and group.oom_kills():
        raise CannotMeasure(f"A process of {who} was killed for memory.")


def _peaks(group: MemoryGroup | None) -> Run:
    """Return most bytes of anonymous memory, and of all memory with the page cache."""
    if group is None:
        return {"peak": None, "charged": None}
    return {"peak": group.anonymous_peak, "charged": group.peak()}


def _placement(server: Server) -> Run:
    """Return the bytes of all weights, and of those on disk, from the model's metadata."""
    url = f"http://{server.host}:{server.port}/v2/models/{server.model}"
    with urllib.request.urlopen(url, timeout=60) as response:
        placement = json.loads(json.load(response)["properties"]["placement"])
    tiers = {tier["name"]: tier["weights"] for tier in placement["tiers"]}
    return {"packed": sum(tiers.values()), "on_disk": tiers.get("disk", 0)}


def _first_tokens(server: Server) -> list[int]:
    """Return the first token after each of some prompts."""
    url = f"http://{server.host}:{server.port}/v1/models/{server.model}:predict"
    tokens = []
    for prompt in _prompts(_COMPARED):
        body = {
            "instances": [f"w{prompt}"],
            "parameters": {"max_new_tokens": 1, "temperature": 0},
        }
        request = urllib.request.Request(url, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=300) as response:
            (reply,) = json.load(response)["predictions"]
        tokens.append(int(reply["text"].strip().removeprefix("w").replace("<unk>", "0")))
    return tokens


def _level(
    server: Server, prompts: Sequence[int] | None, tokens: int, long: Sequence[int] = ()
) -> Run:
    """Return the cost of replies to prompts of one token each, or to one long prompt."""
    texts = [Prompt(f"w{prompt}", 1) for prompt in prompts or ()]
    texts = texts or [Prompt(" ".join(f"w{token}" for token in long), len(long))]
    before, began = read_counters(server), time.perf_counter()
    try:
        replies = asyncio.run(send_all(server, [[text] for text in texts], tokens))
    except* CannotMeasure as errors:
        raise errors.exceptions[0] from None
    seconds = max(reply.ended for reply in replies) - began
    if {reply.tokens for reply in replies} != {tokens}:
        raise CannotMeasure(f"Not every reply has {tokens} tokens.")
    counters = read_counters(server).since(before)
    costs = _costs(len(long) or tokens * len(texts), seconds)
    return costs | {"read_bytes": counters.read_bytes, "passes": counters[PASSES]}


def _costs(tokens: int, seconds: float) -> Run:
    print(f"  {tokens} tokens: {tokens / seconds:.2f} tokens/s", file=sys.stderr, flush=True)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


# llama.cpp


def run_peer(file: Path, limit: float, flags: argparse.Namespace) -> Run:
    """Start llama.cpp's server in a cgroup; return its memory, its start and its speeds.

    Raises:
        CannotMeasure: It did not do the measured work.
    """
    drop_from_cache(file.parent, file.name)
    users = max(max(flags.users), _COMPARED)
    context = flags.prompt + users * (flags.tokens + _MARGIN)
    with _group(limit, flags) as group:
        began = time.perf_counter()
        given = {"users": users, "context": context, "group": group, "work": file.parent}
        with llama_server(flags.llama_server, file, **given) as server:
            ready = time.perf_counter() - began
            tokens = [server.complete([prompt], 1)[0] for prompt in _prompts(_COMPARED)]
            levels = {n: _peer_level(server, n, flags.tokens) for n in flags.users}
            seconds, _ = server.complete_all([_long(flags)], 1)
            prefill = _costs(flags.prompt, seconds)
        _check_alive(f"llama.cpp with {file.name}", group)
        peaks = _peaks(group)
    facts = {"packed": file.stat().st_size, "on_disk": 0, "first_tokens": tokens}
    return facts | peaks | {"ready_seconds": ready, "levels": levels, "prefill": prefill}


def _peer_level(server: LlamaServer, users: int, tokens: int) -> Run:
    before = read_bytes(server.pid)
    seconds, _ = server.complete_all([[prompt] for prompt in _prompts(users)], tokens)
    return _costs(users * tokens, seconds) | {"read_bytes": read_bytes(server.pid) - before}
