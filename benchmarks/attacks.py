"""The loads of `abuse.py`, and how one is run: by a process that gets half a processor."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groups import command_in, if_allowed, processor_group
from measuring import ROOT, CannotMeasure, environment

_SHARE = 0.5
_SLICE = 0.01
"""Seconds for which a process without a cgroup runs or is stopped."""

_SECONDS_TO_END = 240.0


@dataclass(frozen=True, slots=True)
class Case:
    """A load, and the statuses that its clients may get.

    Attributes:
        name: Its name, which begins with a number.
        kind: The function in `abusers` that sends it.
        clients: Clients at one time.
        statuses: Statuses, or names of errors, that are no fault of the server.
        needed: Statuses that the long form must see, or it did not measure what it claims.
        model: ``"demo"``, or a BERT and its width.
        rate: Multiple of the rate of the case "C13 capacity" at which an open loop sends; 0 for a
            closed one.
        has_neighbour: Whether the neighbour's speed is compared.
        is_quick: Whether it is part of the quick form.
        seconds: Its length, if it needs a certain one.
    """

    name: str
    kind: str
    clients: int
    statuses: frozenset[str]
    needed: frozenset[str] = frozenset()
    model: str = "demo"
    rate: float = 0.0
    has_neighbour: bool = True
    is_quick: bool = True
    seconds: float | None = None


def _of(*statuses: str) -> frozenset[str]:
    return frozenset(statuses)


_REFUSED = _of("400", "429")
_CALLS = _of("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
_SLOW = _of("400", "408", "429", "503", "TimeoutError")
_BUSY = _of("200", "429")

CASES = (
    Case("C1 token ids, 1 client", "token_ids", 1, _REFUSED, _of("400")),
    Case("C1 token ids, 10 clients", "token_ids", 10, _REFUSED, _of("400"), is_quick=False),
    Case("C1 token ids, 30 clients", "token_ids", 30, _REFUSED, _of("429")),
    Case("C2 text, 10 clients", "texts", 10, _REFUSED, _of("400"), is_quick=False),
    Case("C3 headers without end", "endless_headers", 1, _of("431", "none"), _of("431")),
    Case("C4 text, 20 clients", "texts", 20, _REFUSED, _of("429"), is_quick=False),
    Case("C5 1,000 slow bodies", "slow_bodies", 1000, _SLOW, _of("429")),
    Case("C6 300 gRPC calls", "grpc_calls", 300, _CALLS, _of("RESOURCE_EXHAUSTED")),
    Case("C14 early refusals", "early_refusals", 10, _of("404"), _of("404")),
    Case("C15 broken protobufs", "broken_protobufs", 10, _CALLS, _of("INVALID_ARGUMENT")),
    Case(
        "C18 500 hang up", "hang_ups", 500, _BUSY | {"hung up"}, _of("hung up"), has_neighbour=False
    ),
    Case("C13 capacity", "overload", 64, _BUSY, _of("200"), has_neighbour=False),
    Case(
        "C13 overload, 2 times",
        "overload",
        1,
        _BUSY,
        _of("200"),
        rate=2,
        has_neighbour=False,
        is_quick=False,
    ),
    Case("C13 overload, 10 times", "overload", 1, _BUSY, _of("429"), rate=10, has_neighbour=False),
    Case(
        "C16 waiting stream",
        "waiting_stream",
        120,
        _BUSY,
        _of("200"),
        has_neighbour=False,
        is_quick=False,
        seconds=20,
    ),
    Case("C11 lone text", "lists", 32, _BUSY, _of("200"), "bert 64", has_neighbour=False),
    Case(
        "C12 large answers",
        "lists",
        4,
        _BUSY,
        _of("200"),
        "bert 1024",
        has_neighbour=False,
        is_quick=False,
    ),
)


def half_a_processor(mounts: Path) -> AbstractContextManager[Path | None]:
    """Return the group for the clients; it is None if none can be made, and signals must do."""
    return if_allowed(processor_group(_SHARE, mounts=mounts), "Signals halve the clients' time")


def attack(case: Case, order: Mapping[str, float], group: Path | None) -> dict[str, Any]:
    """Run a load to its end and return its counts.

    Args:
        case: The load.
        order: The flags of `abusers`.
        group: The clients' cgroup, or None.

    Raises:
        CannotMeasure: The clients failed.
    """
    argv = [sys.executable, str(Path(__file__).with_name("abusers.py")), case.kind]
    argv += [f"--{name}={value}" for name, value in order.items()]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            argv if group is None else command_in(group, argv),
            stdout=out,
            stderr=err,
            cwd=ROOT,
            env=environment(),
        )
        try:
            _await_end(process, is_halved=group is not None)
        except BaseException:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        if process.returncode:
            reason = err.read().decode(errors="replace").strip().splitlines()[-1:]
            raise CannotMeasure(f"The clients of {case.name} failed: {reason}.")
        numbers: dict[str, Any] = json.load(out)
    if not numbers["counts"]:
        raise CannotMeasure(f"The clients of {case.name} sent nothing.")
    return numbers


def _await_end(process: subprocess.Popen[bytes], *, is_halved: bool) -> None:
    if is_halved:
        process.wait(_SECONDS_TO_END)
        return
    while process.poll() is None:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            process.send_signal(number)
            time.sleep(_SLICE)
