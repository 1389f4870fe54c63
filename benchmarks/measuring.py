"""Shared by the benchmarks: a child process and its cost, a table, and a visible failure.

This module imports nothing heavy. Linux counts a parent's memory at the time of the fork into its
child's peak (``exec_mmap`` in ``fs/exec.c``), so the parent has to stay small.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
"""The repository, from which children import `predictor`."""

BYTECODE = ROOT / "benchmarks" / "__pycache__" / "children"
"""The folder of compiled modules for the children, as in an image that was built with pip.

Without it, each child would compile torch and transformers again, which dominates its time.
"""

_POLL = 0.02


class CannotMeasure(Exception):
    """A benchmark did not measure its subject. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A child process that ended.

    Attributes:
        returncode: Its exit status; negative if a signal ended it.
        seconds: Wall time.
        cpu_seconds: Processor time, including that of its own children.
        peak: Bytes of its largest resident set.
        stdout: Its standard output.
        stderr: Its standard error.
    """

    returncode: int
    seconds: float
    cpu_seconds: float
    peak: int
    stdout: str
    stderr: str

    @property
    def last_words(self) -> str:
        """The last line on stderr, on which a Python program reports why it ended."""
        lines = self.stderr.strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


def run(
    argv: Sequence[str], *, watch: Callable[[], None] | None = None, gpus: bool = False
) -> Finished:
    """Run a child process to its end.

    Args:
        argv: Its command line.
        watch: Called about 50 times a second while it runs.
        gpus: Whether it may see GPUs.

    Raises:
        CannotMeasure: It cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        try:
            child = subprocess.Popen(
                argv, stdout=out, stderr=err, cwd=ROOT, env=environment(gpus=gpus)
            )
        except OSError as error:
            raise CannotMeasure(f"{argv[0]} cannot be started: {error.strerror}.") from None
        try:
            status, usage = _wait(child.pid, watch)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        return Finished(
            returncode=child.returncode,
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak=usage.ru_maxrss * 1024,
            stdout=_text(out),
            stderr=_text(err),
        )


def _wait(pid: int, watch: Callable[[], None] | None) -> tuple[int, Any]:
    if watch is None:
        _, status, usage = os.wait4(pid, 0)
        return status, usage
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, usage
        watch()
        time.sleep(_POLL)


def compile_modules(argv: Sequence[str]) -> None:
    """Run a Python program without measuring it, so that its imports are compiled for others.

    Raises:
        CannotMeasure: It fails, or bytecode cannot be written.
    """
    finished = run(argv)
    if finished.returncode != 0:
        raise CannotMeasure(f"{' '.join(argv[:3])} failed: {finished.last_words}")
    if not BYTECODE.is_dir():
        raise CannotMeasure(f"No bytecode came to lie in {BYTECODE}; imports would be compiled.")


def environment(*, gpus: bool = False, root: Path = ROOT) -> dict[str, str]:
    """Return this environment without the predictor's settings, the network and, mostly, GPUs.

    Args:
        gpus: Whether GPUs can be seen.
        root: The repository that `predictor` is imported from.
    """
    dropped = ("PREDICTOR_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    kept |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
        "PYTHONPYCACHEPREFIX": str(BYTECODE),
        "HF_HUB_OFFLINE": "1",
    }
    return kept if gpus else kept | {"CUDA_VISIBLE_DEVICES": ""}


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with its first column aligned left, the others right."""
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(line, widths) for line in [columns, rule, *rows])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)])


def machine() -> str:
    """Return this machine's load, since absolute times depend on it."""
    return f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def mib(count: float) -> str:
    """Return bytes as MiB."""
    return f"{count / 2**20:.0f} MiB"


def add_path_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the working folder and the output file."""
    add = parser.add_argument
    add("--workdir", type=Path, help="a folder on a disk; a temporary one otherwise")
    add("--mounts", type=Path, default=Path("/proc/self/mounts"), help="lists cgroup mounts")
    add("--json", type=Path, help="the file to write the numbers to")


def finish(measure: Callable[[], Mapping[str, Any]], path: Path | None) -> int:
    """Run a benchmark, writes its JSON and returns the exit code.

    Args:
        measure: Returns the result. If its key `failure` holds a sentence, the benchmark fails,
            but the result is written.
        path: The JSON file; None to write none.
    """
    try:
        result = dict(measure())
    except CannotMeasure as error:
        result = {"failure": str(error)}
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
    if result.get("failure"):
        print(f"FAILED: {result['failure']}", file=sys.stderr)
        return 1
    return 0
