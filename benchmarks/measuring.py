"""What the benchmarks share: a child process and what it cost, a table, and a loud end.

Knows no model and imports nothing heavy: Linux counts a parent's memory at the time of the fork
into its child's peak (``exec_mmap`` in ``fs/exec.c``), so the parent has to stay small.
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
"""Where children find compiled modules, as they do in an image that was built with pip.

Without, each would compile torch and transformers again, which takes longer than all the rest.
"""

_POLL = 0.02


class CannotMeasure(Exception):
    """A benchmark did not measure what it claims to; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A child process that ended.

    Attributes:
        returncode: Its exit status; negative where a signal ended it.
        seconds: Wall time.
        cpu_seconds: Processor time, its own children's included.
        peak: Bytes of its largest resident set.
        stdout: What it printed.
        stderr: What it said on stderr.
    """

    returncode: int
    seconds: float
    cpu_seconds: float
    peak: int
    stdout: str
    stderr: str

    @property
    def last_words(self) -> str:
        """The last line on stderr, which is where a Python program says why it ended."""
        lines = self.stderr.strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


def run(
    argv: Sequence[str], *, watch: Callable[[], None] | None = None, gpus: bool = False
) -> Finished:
    """Returns a child process that ran to its end.

    Args:
        argv: Its command line.
        watch: Is called about fifty times a second while it runs.
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
    """Runs a Python program without measuring it, so that what it imports is compiled for others.

    Raises:
        CannotMeasure: It fails, or bytecode cannot be written.
    """
    found = run(argv)
    if found.returncode != 0:
        raise CannotMeasure(f"{' '.join(argv[:3])} failed: {found.last_words}")
    if not BYTECODE.is_dir():
        raise CannotMeasure(f"No bytecode came to lie in {BYTECODE}; imports would be compiled.")


def environment(*, gpus: bool = False) -> dict[str, str]:
    """This environment without settings of the predictor, the network and, mostly, GPUs."""
    dropped = ("PREDICTOR_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    kept |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONPYCACHEPREFIX": str(BYTECODE),
        "HF_HUB_OFFLINE": "1",
    }
    return kept if gpus else kept | {"CUDA_VISIBLE_DEVICES": ""}


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table: the first column to the left, the others to the right."""
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(line, widths) for line in [columns, rule, *rows])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)])


def machine() -> str:
    """Returns how busy this machine is, since absolute times depend on it."""
    return f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def mib(count: float) -> str:
    """Returns bytes as MiB."""
    return f"{count / 2**20:.0f} MiB"


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where to work, and where to write."""
    add = parser.add_argument
    add("--workdir", type=Path, help="a folder on a disk; a temporary one otherwise")
    add("--mounts", type=Path, default=Path("/proc/self/mounts"), help="where cgroups are found")
    add("--json", type=Path, help="where to write the numbers")


def finish(measure: Callable[[], Mapping[str, Any]], path: Path | None) -> int:
    """Runs a benchmark, writes its JSON and returns the exit code.

    Args:
        measure: Returns the result; where its key `failure` holds a sentence, the benchmark fails
            although there is something to write.
        path: Where the JSON goes; None for nowhere.
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
