"""A start beside busy neighbours: a minute after they have left, is the server as fast as others?

For each model:

1. Neighbours keep all processors busy while a server starts and answers its first requests.
2. The neighbours leave. The server answers requests for a minute.
3. Another server starts undisturbed. Both answer the same requests in turn.

The figure is the ratio of their tokens per second. Other processes on the machine disturb all of
it; the load average is in the JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint import Size, make
from load import Server, await_quiet, measure_users
from measuring import ROOT, CannotMeasure, add_path_flags, finish, machine, table
from served import serve
from serving import Prompts

TARGET = 0.9
"""Least tokens per second after the disturbance, as a multiple of an undisturbed start's."""

PARTS = ("demo", "llama")
_LLAMA = Size(1024, 8, 512, "float32")
"""A model of 0.3 GB, for which threads help more than for the demo model."""

_SPIN = "while True: pass"
_THREADS = r"Forward passes (?:begin with|use) (\d+)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="the models")
    add("--neighbours", type=int, default=3, help="busy processes during the start")
    add("--settle", type=float, default=60, help="seconds of requests after they have left")
    add("--rounds", type=int, default=5, help="comparisons; the median counts")
    add("--users", type=int, default=1, help="concurrent users")
    add("--new_tokens", type=int, default=64, help="tokens of a reply")
    add("--wait", type=float, default=30, help="most seconds to wait for a quiet machine")
    add("--quick", action="store_true", help="few requests and no neighbours; proves nothing")
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them."""
    if flags.quick:
        flags.parts, flags.neighbours, flags.settle, flags.rounds = ["demo"], 0, 0.0, 1
        flags.new_tokens, flags.wait = 4, 0.0
    before, parts = machine(), {}
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="threads-") as work:
        for name in flags.parts:
            folder = Path(work) / name
            folder.mkdir()
            parts[name] = _measure_part(name, flags, folder)
    print(_table(parts))
    failure = None if flags.quick else failure_of(parts)
    return {
        "parts": parts,
        "target": TARGET,
        "machine": [before, machine()],
        "failure": failure,
    }


def failure_of(parts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the sentence that names the models that miss the target; None if none does."""
    missed = [name for name, part in parts.items() if part["ratio"] < TARGET]
    return f"Under {TARGET}: {', '.join(missed)}." if missed else None


def _measure_part(name: str, flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    model = _model(name, work)
    users = _Users(model, flags)
    settings = [f"--model_dir={model}", "--max_model_len=256", "--device_map=cpu"]
    disturbed_work, quiet_work = work / "disturbed", work / "quiet"
    disturbed_work.mkdir()
    quiet_work.mkdir()
    await_quiet(flags.wait)
    with contextlib.ExitStack() as stack:
        with _neighbours(flags.neighbours):
            disturbed = stack.enter_context(serve(settings, None, disturbed_work))
            beside = users.measure(disturbed)["tokens_per_second"]
        at_once = users.measure(disturbed)["tokens_per_second"]
        users.load(disturbed, flags.settle)
        quiet = stack.enter_context(serve(settings, None, quiet_work))
        users.load(quiet, min(5.0, flags.settle))
        await_quiet(flags.wait, disturbed.pid, quiet.pid)
        pairs = [[users.measure(each) for each in (disturbed, quiet)] for _ in range(flags.rounds)]
    ratios = [pair[0]["tokens_per_second"] / pair[1]["tokens_per_second"] for pair in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "beside_neighbours": beside,
        "at_once_afterwards": at_once,
        "disturbed": _median(pair[0]["tokens_per_second"] for pair in pairs),
        "quiet": _median(pair[1]["tokens_per_second"] for pair in pairs),
        "disturbed_threads": _threads(disturbed_work),
        "quiet_threads": _threads(quiet_work),
    }


def _model(name: str, work: Path) -> Path:
    if name == "demo":
        return ROOT / "examples" / "demo-model"
    folder = work / "model"
    folder.mkdir()
    make(folder, _LLAMA)
    return folder


class _Users:
    """Users who send the same requests to each server."""

    def __init__(self, model: Path, flags: argparse.Namespace) -> None:
        self._prompts, self._flags = Prompts(model, 8), flags

    def measure(self, server: Server) -> dict[str, Any]:
        """Have each user send two requests, one after another."""
        users = [self._prompts.take(2, seed=user) for user in range(self._flags.users)]
        return measure_users(server, users, self._flags.new_tokens)

    def load(self, server: Server, seconds: float) -> None:
        """Have the users send requests for so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.measure(server)


@contextlib.contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """Keep processors busy with so many processes."""
    argv = [sys.executable, "-c", _SPIN]
    processes = [subprocess.Popen(argv) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _threads(work: Path) -> list[int]:
    """Return the numbers of threads of a server, from its log: at the start, then each change.

    Raises:
        CannotMeasure: The log says nothing about them.
    """
    numbers = [int(number) for number in re.findall(_THREADS, (work / "serve.log").read_text())]
    if not numbers:
        raise CannotMeasure("The server's log says nothing about its threads.")
    return numbers


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _table(parts: dict[str, dict[str, Any]]) -> str:
    columns = ("model", "ratio", "target", "tokens/s", "undisturbed", "at once", "beside them")
    rates = ("disturbed", "quiet", "at_once_afterwards", "beside_neighbours")
    rows = [
        [name, f"{part['ratio']:.2f}", str(TARGET), *(f"{part[rate]:.0f}" for rate in rates)]
        + [f"{_path(part['disturbed_threads'])} ({_path(part['quiet_threads'])})"]
        for name, part in parts.items()
    ]
    return table((*columns, "threads (undisturbed)"), rows)


def _path(numbers: Sequence[int]) -> str:
    return " > ".join(map(str, numbers))


if __name__ == "__main__":
    sys.exit(main())
