"""A mixture of experts bigger than its pod: experts read one by one, whole blocks, and peers.

A made Qwen3-MoE of 64 experts, 4 routed, in bfloat16 (4.2 GB; see `mixtures`) in a memory cgroup of
1.2 GiB, each contestant alone in fresh processes from a cold page cache:

- ``experts``: the predictor, which reads the experts that are routed to;
- ``whole``: the predictor, which streams blocks with all of their experts;
- ``accelerate``: transformers with ``device_map="auto"`` and a ``max_memory`` of what is left;
- ``llama.cpp``: with the model's file mapped, if ``--peer_python`` is an environment with the
  packages cyllama and gguf.

Prompts of one token, so that every forward pass is one of decode, and one long prompt. The routing
is skewed and correlated as in real models; ``uniform`` routing is the hard case, for the predictor
alone. The limit is the longer of computing (passes less their stalls) and of reading the bytes that
were read, as the kernel counts them, at the device's own bandwidth. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from checkpoint import direct_read_speed, drop_from_cache
from counters import HITS, MISSES, PASS_SECONDS, PASSES, STALLS, Counters, read_counters
from expert_report import failure_of, report, targets
from groups import MemoryGroup, memory_group, sampled
from load import Prompt, Server, send_all
from measuring import CannotMeasure, Finished, add_path_flags, finish, machine, run
from mixtures import SKEWED, UNIFORM, MixtureSize, make_mixture, make_variant
from served import serve

CONTESTANTS = ("experts", "whole", "accelerate", "llama.cpp")
EXPERT_FLAGS = {"experts": "--expert_slots=auto", "whole": "--expert_slots=never"}
"""The predictor's flag for each of its two contestants."""

TINY = MixtureSize(hidden=256, layers=8, experts=32, inner=128, vocabulary=512, head=32)
_TINY_BUDGET = json.dumps({"cpu": "80MiB"})
_READERS = 4
_MARGIN = 32
"""Positions of each user's KV cache besides its tokens."""

Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and returns the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--contestants", nargs="+", choices=CONTESTANTS, help="all that can run by default")
    add("--limit", type=float, default=1.2, help="GiB of each contestant's cgroup")
    add("--users", type=int, nargs="+", help="at one time (default: 1 4 8 16 32)")
    add("--uniform_users", type=int, nargs="*", help="the same for uniform routing (default: 1 8)")
    add("--tokens", type=int, help="new tokens of the predictor's replies (default: 48)")
    add("--peer_tokens", type=int, default=4, help="new tokens of the peers' replies")
    add("--prompt", type=int, help="tokens of the long prompt (default: 1024)")
    add("--peer_python", type=Path, help="a Python that has cyllama and gguf")
    add("--quick", action="store_true", help="a tiny model without a cgroup; proves nothing")
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A contestant did not do the measured work.
    """
    _fill_in(flags)
    before, size = machine(), TINY if flags.quick else MixtureSize()
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="experts-") as work:
        skewed, uniform = Path(work) / "skewed", Path(work) / "uniform"
        skewed.mkdir()
        uniform.mkdir()
        weights = make_mixture(skewed, size, SKEWED)
        make_variant(uniform, skewed, size, UNIFORM)
        routings = _routings([skewed, uniform])
        runs = {name: _run(name, skewed, size, flags, flags.users) for name in flags.contestants}
        hard = {
            name: _run(name, uniform, size, flags, flags.uniform_users)
            for name in flags.contestants
            if name in EXPERT_FLAGS and flags.uniform_users
        }
    read_speeds = [
        speed for each in (*runs.values(), *hard.values()) for speed in each.get("read_speeds", ())
    ]
    result: dict[str, Any] = {
        "limit": None if flags.quick else int(flags.limit * 2**30),
        "weights": weights,
        "expert": size.expert,
        "bytes_per_second": max(read_speeds, default=None),
        "routings": routings,
        "runs": {"skewed": runs, "uniform": hard},
        "machine": [before, machine()],
    }
    result["targets"] = targets(result)
    print(report(result))
    return result | {"failure": failure_of(result)}


def _fill_in(flags: argparse.Namespace) -> None:
    quick = flags.quick
    flags.users = flags.users or ([1, 2] if quick else [1, 4, 8, 16, 32])
    if flags.uniform_users is None:
        flags.uniform_users = [1] if quick else [1, 8]
    flags.tokens = flags.tokens or (8 if quick else 48)
    flags.prompt = flags.prompt or (64 if quick else 1024)
    if flags.contestants is None:
        flags.contestants = [n for n in CONTESTANTS if n != "llama.cpp" or flags.peer_python]
    if "llama.cpp" in flags.contestants and not flags.peer_python:
        raise CannotMeasure("llama.cpp needs --peer_python, an environment with cyllama and gguf.")


def _routings(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the measured choices of made models."""
    print("measuring the routing ...", file=sys.stderr, flush=True)
    script = str(Path(__file__).with_name("routing.py"))
    argv = [sys.executable, script, *map(str, folders)]
    return _output(run(argv), "The measurement of the routing")


def _output(done: Finished, who: str) -> dict[str, Any]:
    if done.returncode != 0:
        raise CannotMeasure(f"{who} ended with status {done.returncode}: {done.last_words}")
    numbers: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return numbers


@contextlib.contextmanager
def _group(flags: argparse.Namespace) -> Iterator[MemoryGroup | None]:
    if flags.quick:
        yield None
        return
    limit = int(flags.limit * 2**30)
    with memory_group(limit, mounts=flags.mounts) as group, sampled(group):
        yield group


def _run(
    name: str, folder: Path, size: MixtureSize, flags: argparse.Namespace, users: Sequence[int]
) -> Run:
    print(f"{name}, {folder.name} routing ...", file=sys.stderr, flush=True)
    if name in EXPERT_FLAGS:
        return _predictor(name, folder, size, flags, users)
    return _peer(name, folder, size, flags, users)


# The predictor


def _predictor(
    name: str, folder: Path, size: MixtureSize, flags: argparse.Namespace, users: Sequence[int]
) -> Run:
    drop_from_cache(folder)
    speeds = _speeds(folder)
    offload = folder.parent / "offload"
    settings = _settings(name, folder, offload, flags, users)
    with _group(flags) as group:
        began = time.perf_counter()
        with serve(settings, group, folder.parent) as server:
            ready = time.perf_counter() - began
            _check_walk(server)
            levels = {
                count: _level(name, server, _prompts(count, size), flags.tokens) for count in users
            }
            long = " ".join(f"w{1 + 7 * at % (size.vocabulary - 1)}" for at in range(flags.prompt))
            prefill = _level(name, server, [Prompt(long, flags.prompt)], 1)
        if group and group.oom_kills():
            raise CannotMeasure(f"A process of {name} was killed for memory.")
        peak = group.anonymous_peak if group else None
    shutil.rmtree(offload, ignore_errors=True)
    speeds += _speeds(folder)
    numbers = {"read_speeds": speeds, "ready_seconds": ready, "peak": peak}
    return {"survived": True, **numbers, "levels": levels, "prefill": prefill}


def _speeds(folder: Path) -> list[float]:
    """Return the device's bandwidth by direct reads, of one thread and of several."""
    return [direct_read_speed(folder, readers=readers) for readers in (1, _READERS)]


def _settings(
    name: str, folder: Path, offload: Path, flags: argparse.Namespace, users: Sequence[int]
) -> list[str]:
    length = flags.prompt + 2 * _MARGIN
    concurrency = -(-max(users) * (flags.tokens + _MARGIN) // length)
    settings = [f"--model_dir={folder}", f"--offload_folder={offload}"]
    settings += [f"--max_model_len={length}", f"--max_concurrency={concurrency}"]
    settings += ["--max_batch_size=64", "--max_requests=128", EXPERT_FLAGS[name]]
    return [*settings, f"--max_memory={_TINY_BUDGET}"] if flags.quick else settings


def _prompts(users: int, size: MixtureSize) -> list[Prompt]:
    """Return a prompt of one token for each user; they begin apart on the model's walk."""
    apart = size.vocabulary // users
    return [
        Prompt(f"w{1 + (37 * users + apart * user) % (size.vocabulary - 1)}", 1)
        for user in range(users)
    ]


def _check_walk(server: Server) -> None:
    """Check that the model works as it was made: each token is followed by the next one.

    Raises:
        CannotMeasure: It does not.
    """
    url = f"http://{server.host}:{server.port}/v1/models/{server.model}:predict"
    body = {"instances": ["w5"], "parameters": {"max_new_tokens": 4, "temperature": 0}}
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=300) as response:
        reply = response.read().decode()
    if "w6 w7 w8 w9" not in reply:
        raise CannotMeasure(f"The model does not follow its walk: {reply[:200]}")


def _level(name: str, server: Server, prompts: Sequence[Prompt], tokens: int) -> dict[str, Any]:
    """Return the cost of replies to prompts that are sent at the same time."""
    before, began = read_counters(server), time.perf_counter()
    try:
        replies = asyncio.run(send_all(server, [[prompt] for prompt in prompts], tokens))
    except* CannotMeasure as errors:
        raise errors.exceptions[0] from None
    seconds = max(reply.ended for reply in replies) - began
    if {reply.tokens for reply in replies} != {tokens}:
        raise CannotMeasure(f"Not every reply has {tokens} tokens.")
    # Of a long prompt its own tokens count, of a short one those of the reply.
    count = prompts[0].tokens if tokens == 1 else tokens * len(prompts)
    costs = _costs(name, read_counters(server).since(before), seconds, count)
    speed = costs["tokens_per_second"]
    print(f"  {len(prompts)} prompt(s): {speed:.2f} tokens/s", file=sys.stderr, flush=True)
    return costs


def _costs(name: str, counters: Counters, seconds: float, tokens: int) -> dict[str, Any]:
    costs = {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "passes": counters[PASSES],
        "read_bytes": counters.read_bytes,
    }
    if not counters.read_bytes:
        raise CannotMeasure(f"{name} read nothing: give a smaller --limit.")
    if counters[STALLS]:
        costs["compute_seconds"] = counters[PASS_SECONDS] - counters[STALLS]
    elif name == "experts":  # where blocks do not fit, Accelerate streams and counts no waits
        raise CannotMeasure(f"{name} waited for no weights, so that computing is not known.")
    if name == "experts":
        costs |= {"hits": counters[HITS], "misses": counters[MISSES]}
    return costs


# Peers


def _peer(
    name: str, folder: Path, size: MixtureSize, flags: argparse.Namespace, users: Sequence[int]
) -> Run:
    script = str(Path(__file__).with_name("mixture_peers.py"))
    python, model = sys.executable, folder
    if name == "llama.cpp":
        python, model = str(flags.peer_python), folder / "model.gguf"
        done = run([python, script, "convert", str(folder)])
        if done.returncode != 0:
            raise CannotMeasure(f"The model cannot be converted: {done.last_words}")
        drop_from_cache(folder, "*.gguf")
    drop_from_cache(folder)
    argv = [python, script, name, str(model), f"--tokens={flags.peer_tokens}"]
    argv += [f"--prompt={flags.prompt}", f"--vocabulary={size.vocabulary}"]
    argv += ["--users", *map(str, users)]
    with _group(flags) as group:
        if group:
            argv = group.command([*argv, f"--limit={int(flags.limit * 2**30)}"])
        done = run(argv)
        if group and group.oom_kills() and done.returncode == -signal.SIGKILL:
            return {"survived": False}
        measured = _output(done, name)
        if group and group.folder.name not in measured.pop("group"):
            raise CannotMeasure(f"{name} did not run in its memory cgroup.")
    (folder / "model.gguf").unlink(missing_ok=True)
    return {"survived": True, **_peer_costs(name, measured, flags.prompt, size)}


def _peer_costs(
    name: str, measured: Mapping[str, Any], prompt: int, size: MixtureSize
) -> dict[str, Any]:
    """Return a peer's costs of a pass as those of a level.

    Raises:
        CannotMeasure: Its replies do not follow the model's walk.
    """
    levels = {}
    for users, level in measured["levels"].items():
        for reply in level["replies"]:
            if any((one + 1) % size.vocabulary != two for one, two in pairwise(reply)):
                raise CannotMeasure(f"{name} does not follow the model's walk: {reply}")
        levels[int(users)] = _pass_costs(level, int(users))
    return {"levels": levels, "prefill": _pass_costs(measured["prefill"], prompt)}


def _pass_costs(cost: Mapping[str, float], tokens: int) -> dict[str, Any]:
    return {
        "seconds": cost["seconds"],
        "tokens": tokens,
        "tokens_per_second": tokens / cost["seconds"],
        "read_bytes": cost["read_bytes"],
    }


if __name__ == "__main__":
    sys.exit(main())
