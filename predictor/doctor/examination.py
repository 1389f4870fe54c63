"""All checks in order, and their results as text and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from predictor.doctor import machine, network, software, storage
from predictor.doctor.check import Check, Surroundings
from predictor.quantity import format_bytes
from predictor.settings import Settings

_MARKS = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE", "skipped": "skipped"}


def examine(settings: Settings, around: Surroundings) -> Iterator[Check]:
    """Yield the result of each check, as soon as it is there."""
    yield machine.check_memory(around)
    yield machine.check_processors(around)
    yield machine.check_shared_memory(around)
    yield machine.check_locked_memory()
    yield storage.check_temporary(around)
    yield storage.check_model_directory(settings)
    yield storage.check_offload(settings, around)
    yield network.check_source(settings, around)
    yield from network.check_ports(settings)
    if machine.has_room(around):
        yield from _examine_with_libraries(settings, around)
    else:
        yield Check(
            "libraries, GPUs, offload speed",
            "skipped",
            f"These checks take {format_bytes(machine.ROOM_TO_IMPORT)} of memory, which are not "
            "left.",
            "Run the command in a copy of the pod (kubectl debug --copy-to), beside no server.",
        )


def _examine_with_libraries(settings: Settings, around: Surroundings) -> Iterator[Check]:
    yield from software.check_libraries(around)
    yield software.check_driver(around)
    yield from machine.check_pod(settings, around)
    yield storage.check_offload_speed(settings, around)


def has_failure(checks: Sequence[Check]) -> bool:
    """Return whether a check has failed."""
    return any(check.state == "failure" for check in checks)


def as_text(checks: Sequence[Check]) -> str:
    """Return a line for each check, with a line for what to do, and a line of counts."""
    lines = []
    for check in checks:
        lines.append(f"{_MARKS[check.state]}  {check.name}: {check.finding}")
        if check.remedy:
            lines.append(f"         -> {check.remedy}")
    counts = Counter(check.state for check in checks)
    lines.append(
        f"failures: {counts['failure']}, warnings: {counts['warning']}, ok: {counts['ok']}, "
        f"skipped: {counts['skipped']}"
    )
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """Return the same as JSON."""
    rows = [
        {"name": c.name, "state": c.state, "finding": c.finding, "remedy": c.remedy} for c in checks
    ]
    return json.dumps({"ok": not has_failure(checks), "checks": rows}, indent=2)
