"""A real `predictor serve` process on free ports, for benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from checkpoint import drop_from_cache
from groups import MemoryGroup, memory_group
from load import Server
from measuring import ROOT, CannotMeasure, environment

_SECONDS_TO_START = 300
_POLL = 0.05


def check_placement(server: Server, device_map: Mapping[str, str]) -> None:
    """Check that the server placed the model as the baseline did.

    Raises:
        CannotMeasure: It did not.
    """
    url = f"http://{server.host}:{server.port}/v2/models/{server.model}"
    with urllib.request.urlopen(url, timeout=60) as response:
        placement = json.loads(json.load(response)["properties"]["placement"])
    expected = device_map.get("")
    mine = dict.fromkeys(placement["device_map"], expected) if expected else dict(device_map)
    if placement["device_map"] != mine:
        raise CannotMeasure("The server has placed the model otherwise than the baseline.")


def server_command(settings: Sequence[str]) -> list[str]:
    """Return the command of a server of the model `m` on free ports, with more flags."""
    argv = [sys.executable, "-m", "predictor", "serve", "--host=127.0.0.1", "--model_name=m"]
    return [*argv, "--http_port=0", "--grpc_port=0", *settings]


@contextlib.contextmanager
def serve(
    settings: Sequence[str], group: MemoryGroup | None, work: Path, *, root: Path = ROOT
) -> Iterator[Server]:
    """Start a server, yield it when it is ready, and end it. It must not end by itself.

    Args:
        settings: Flags of `predictor serve`.
        group: The memory cgroup to run in, or None.
        work: The folder of its log.
        root: The repository of the predictor.

    Raises:
        CannotMeasure: It does not get ready, or dies.
    """
    argv = server_command(settings)
    log = work / "serve.log"
    command = argv if group is None else group.command(argv)
    with running(command, log, root=root) as process:
        port = int(await_line(process, log, r"REST on http://[\d.]+:(\d+)"))
        await_line(process, log, r"is ready after ()")
        yield Server("127.0.0.1", port, "m", process.pid)


def add_memory_flags(parser: argparse.ArgumentParser, *, limit: float, budget: float) -> None:
    """Add the flags of `serve_model` with these defaults."""
    add = parser.add_argument
    add("--limit", type=float, default=limit, help=f"GiB of the cgroup (default: {limit:g})")
    text = f"GiB of main memory to plan for (default: {budget:g})"
    add("--budget", type=float, default=budget, help=text)


@contextlib.contextmanager
def serve_model(
    model: Path,
    settings: Sequence[str],
    flags: argparse.Namespace,
    work: Path,
    *,
    in_memory: bool = False,
) -> Iterator[Server]:
    """Serve a model in a memory cgroup, with what is beyond a budget on disk; see `serve`.

    Args:
        model: The model's directory. Its weights leave the page cache.
        settings: More flags of `predictor serve`.
        flags: Those of `add_memory_flags`, and `mounts`.
        work: The folder of the log.
        in_memory: Serve without cgroup and budget instead.
    """
    settings = [f"--model_dir={model}", *settings]
    with contextlib.ExitStack() as stack:
        group = None
        if not in_memory:
            limit = int(flags.limit * 2**30)
            group = stack.enter_context(memory_group(limit, mounts=flags.mounts))
            settings.append(f"--max_memory={json.dumps({'cpu': f'{flags.budget}GiB'})}")
            drop_from_cache(model)
        yield stack.enter_context(serve(settings, group, work))


@contextlib.contextmanager
def running(
    argv: Sequence[str], log: Path, *, root: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server that writes to a log, yield it, and end it. It must not end by itself.

    Args:
        argv: Its command line.
        log: Its log.
        root: The folder that it runs in, and imports `predictor` from.

    Raises:
        CannotMeasure: It dies.
    """
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=stderr, cwd=root, env=environment(root=root)
        )
    try:
        yield process
        if process.poll() is not None:
            raise CannotMeasure(f"The server died: {_last_words(log)}")
    finally:
        process.kill()
        process.wait()


def await_line(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    """Wait for a line in a server's log; return the pattern's first group.

    Raises:
        CannotMeasure: The server dies first, or takes too long.
    """
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        match = re.search(pattern, log.read_text(errors="replace"))
        if match is not None:
            return match[1]
        if process.poll() is not None:
            break
        time.sleep(_POLL)
    raise CannotMeasure(f"The server did not get ready: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
