"""What a server counts, and what the kernel counts for it, before and after a load."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from load import Server
from measuring import CannotMeasure

HITS, MISSES = "predictor_expert_hits_total", "predictor_expert_misses_total"
PASSES, PASS_SECONDS = "predictor_step_seconds_count", "predictor_step_seconds_sum"
STALLS = "predictor_weights_stall_seconds_total"
DRAFTED, ACCEPTED = "predictor_draft_tokens_total", "predictor_draft_tokens_accepted_total"

_NAMES = (HITS, MISSES, PASSES, PASS_SECONDS, STALLS, DRAFTED, ACCEPTED)

_SECONDS_TO_ARRIVE = 0.3
"""The engine process sends its metrics to the one that answers, a little later."""

_SECONDS_TO_SETTLE = 300
"""After the first start, a server reads its files again beside serving, to know them later."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of a server.

    Attributes:
        read_bytes: Bytes that its processes had read from disk, from the kernel.
        metrics: Its metrics, each summed over its labels; 0 if it has none of that name.
    """

    read_bytes: int
    metrics: dict[str, float]

    def since(self, before: Counters) -> Counters:
        """Return what was added after an earlier reading."""
        added = {name: value - before.metrics[name] for name, value in self.metrics.items()}
        return Counters(self.read_bytes - before.read_bytes, added)

    def __getitem__(self, name: str) -> float:
        """Return a metric."""
        return self.metrics[name]


def read_counters(server: Server) -> Counters:
    """Read the counters of a server between two loads, when they no longer change.

    Raises:
        CannotMeasure: They keep changing.
    """
    counters, end = _read(server), time.monotonic() + _SECONDS_TO_SETTLE
    while time.monotonic() < end:
        time.sleep(_SECONDS_TO_ARRIVE)
        before, counters = counters, _read(server)
        if counters == before:
            return counters
    raise CannotMeasure("The counters of an idle server keep changing.")


def _read(server: Server) -> Counters:
    url = f"http://{server.host}:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as response:
        text = response.read().decode()
    metrics = dict.fromkeys(_NAMES, 0.0)
    for name, value in re.findall(r"^(predictor_\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        if name in metrics:
            metrics[name] += float(value)
    return Counters(read_bytes(server.pid), metrics)


def read_bytes(pid: int) -> int:
    """Return the bytes that a process and its descendants have read from disk."""
    return sum(map(_read_bytes, _family(pid)))


def _family(pid: int) -> list[int]:
    """Return a process and those that it started, and so on."""
    children = [
        int(child)
        for file in Path(f"/proc/{pid}/task").glob("*/children")
        for child in file.read_text().split()
    ]
    return [pid, *(one for child in children for one in _family(child))]


def _read_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])
