"""What is seen beside an attack, by the processes of `bystanders` and by the server itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load import Server, quantile
from measuring import ROOT, CannotMeasure, environment

PATHS = ("live", "ready")

_SAMPLE = 0.02
_SECONDS_TO_SETTLE = 60.0
"""Seconds within which all that a load has begun must be over."""

_FILES = 4
"""Open files of the server that the bystanders make come and go."""

Window = Sequence[float]
"""Two times on the clock of `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class Witnesses:
    """The server, and what runs beside it.

    Attributes:
        server: The server.
        ports: Its ports, and those of the process that drops everything.
        probe: The lines of the probe.
        user: The lines of the neighbour, or of the lone text.
    """

    server: Server
    ports: Mapping[str, Mapping[str, int]]
    probe: Path
    user: Path

    def probed(self, path: str, window: Window) -> dict[str, Any]:
        """Return the quantiles of a probe's answers, and how many had another status than 200.

        Raises:
            CannotMeasure: There are none.
        """
        lines = [line for line in _probes(self.probe, window) if line[1] == path]
        if not lines:
            raise CannotMeasure(f"The probe did not ask for {path} during a load.")
        seconds = [float(line[2]) for line in lines]
        return _quantiles(seconds) | {"failed": sum(line[3] != "200" for line in lines)}

    def tokens_per_second(self, window: Window) -> float:
        """Return the neighbour's speed."""
        tokens = sum(int(line[1]) for line in _lines(self.user, window))
        return tokens / (window[1] - window[0])

    def refusals(self, window: Window) -> int:
        """Return how often the neighbour was refused."""
        return sum(line[2] != "200" for line in _lines(self.user, window))

    def waits(self, window: Window) -> dict[str, Any]:
        """Return the quantiles of a lone text's answers.

        Raises:
            CannotMeasure: There are none.
        """
        seconds = [float(line[1]) for line in _lines(self.user, window) if line[2] == "200"]
        if not seconds:
            raise CannotMeasure("No lone text was answered during a load.")
        return _quantiles(seconds)

    def open_files(self) -> int:
        """Return the number of files that the server has open."""
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def passes(self) -> tuple[float, float]:
        """Return the number of forward passes so far, and their seconds."""
        text = self._get("/metrics")
        values = [
            sum(map(float, re.findall(rf"^predictor_step_seconds_{name}\S* (\S+)$", text, re.M)))
            for name in ("count", "sum")
        ]
        return values[0], values[1]

    def await_settled(self, files: int) -> dict[str, int]:
        """Wait until a load is over; return the requests and files that it left open."""
        deadline = time.monotonic() + _SECONDS_TO_SETTLE
        while True:
            (described,) = json.loads(self._get(f"/models/{self.server.model}"))
            requests = int(described["jobQueueStatus"]["pendingRequests"]) - 1  # the neighbour's
            left = {
                "requests": max(0, requests),
                "files": max(0, self.open_files() - files - _FILES),
            }
            if not any(left.values()) or time.monotonic() > deadline:
                return left
            time.sleep(0.1)

    def _get(self, path: str) -> str:
        url = f"http://{self.server.host}:{self.server.port}{path}"
        with urllib.request.urlopen(url, timeout=60) as response:
            text: str = response.read().decode()
        return text


def _lines(path: Path, window: Window) -> list[list[str]]:
    """Return the lines of a bystander that it began within a window."""
    return [each for each in _all_lines(path) if window[0] <= float(each[0]) <= window[1]]


def _probes(path: Path, window: Window) -> list[list[str]]:
    """Return the lines of the probe for what it waited for within a window, at least in part.

    Raises:
        CannotMeasure: Some of it is never answered.
    """
    deadline = time.monotonic() + _SECONDS_TO_SETTLE
    while float((lines := _all_lines(path))[-1][0]) <= window[1]:
        if time.monotonic() > deadline:
            raise CannotMeasure("The probe of a load is not answered.")
        time.sleep(_SAMPLE)
    begun = [line for line in lines if float(line[0]) + float(line[2]) >= window[0]]
    return [line for line in begun if float(line[0]) <= window[1]]


def _all_lines(path: Path) -> list[list[str]]:
    *whole, _ = path.read_text().split("\n")
    return [line.split() for line in whole]


def _quantiles(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "count": len(seconds),
        "p50": quantile(seconds, 0.5),
        "p99": quantile(seconds, 0.99),
        "max": max(seconds),
    }


@contextlib.contextmanager
def witnesses(user: str, server: Server, work: Path) -> Iterator[Witnesses]:
    """Start the bystanders of a server.

    Args:
        user: ``"neighbour"`` or ``"lone"``.
        server: The server.
        work: The folder of its log.

    Raises:
        CannotMeasure: One does not start, or ends.
    """
    grpc = re.search(r"gRPC on [\d.]+:(\d+)", (work / "serve.log").read_text(errors="replace"))
    if grpc is None:
        raise CannotMeasure("The server's log does not name its gRPC port.")
    with contextlib.ExitStack() as stack:
        lines = {
            kind: stack.enter_context(_bystander(kind, server.port, work))
            for kind in ("probe", user, "drop")
        }
        drop = json.loads(_first_line(lines["drop"]))
        _first_line(lines["probe"])
        _first_line(lines[user])
        ports = {"server": {"port": server.port, "grpc": int(grpc[1])}, "drop": drop}
        yield Witnesses(server, ports, lines["probe"], lines[user])


@contextlib.contextmanager
def _bystander(kind: str, port: int, work: Path) -> Iterator[Path]:
    lines = work / f"{kind}.lines"
    argv = [sys.executable, str(Path(__file__).with_name("bystanders.py")), kind, str(port)]
    with lines.open("wb") as stdout:
        process = subprocess.Popen(argv, stdout=stdout, cwd=ROOT, env=environment())
    try:
        yield lines
        if process.poll() is not None:
            raise CannotMeasure(f"The {kind} beside the server ended.")
    finally:
        process.kill()
        process.wait()


def _first_line(lines: Path) -> str:
    for _ in range(1200):
        first, ended, _ = lines.read_text().partition("\n")
        if ended:
            return first
        time.sleep(0.05)
    raise CannotMeasure(f"The {lines.stem} beside the server did not start.")
