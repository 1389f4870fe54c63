"""Main memory that this process may still take: the tightest of its control groups, or the host.

Tools such as ``free`` and psutil show the host's memory; a process in a Pod that believes them is
killed without a word. Swap is not counted: a model in swap serves nobody.
"""

from __future__ import annotations

import re
from pathlib import Path

from predictor.errors import ConfigurationError
from predictor.pod.cgroup import limited_groups
from predictor.pod.resources import Memory
from predictor.quantity import format_bytes

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")

PROCESS = 512 * 1024**2
"""Bytes of the memory limit that the serving process itself holds when it plans: Python, torch and
kserve. 468 MiB were measured without a GPU; what CUDA takes besides was not."""


def read_memory(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> Memory:
    """Returns the memory that can still be taken, never more than the host has available.

    Page cache does not count as used, since the kernel gives it back; tmpfs, shared memory and
    what other processes of the same group hold does.

    Raises:
        ConfigurationError: The host does not say what it has available.
    """
    host = _field(proc / "meminfo", "MemAvailable")
    groups = limited_groups(cgroup_root=cgroup_root, proc=proc)
    if not groups:
        return Memory(limit=None, available=host, source="host")
    tightest = min(groups, key=lambda group: group.headroom)
    limit = min(group.limit for group in groups)
    if host < tightest.headroom:
        return Memory(limit, host, f"host (less than {tightest.source} leaves)")
    return Memory(limit, tightest.headroom, tightest.source)


def check_process_fits(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> None:
    """Refuses to go on where this process would be killed before it has planned anything.

    Raises:
        ConfigurationError: It would.
    """
    memory = read_memory(cgroup_root=cgroup_root, proc=proc)
    whole = memory.available + read_own_anonymous(proc=proc)
    if whole < PROCESS:
        raise ConfigurationError(
            f"The predictor's own process takes {format_bytes(PROCESS)} of main memory, and "
            f"{memory.source} leaves {format_bytes(whole)}; raise the container's memory limit."
        )


def read_own_anonymous(*, proc: Path = PROC) -> int:
    """Returns the bytes of anonymous memory that this process holds.

    Raises:
        ConfigurationError: The kernel does not say.
    """
    return _field(proc / "self/status", "RssAnon", "VmRSS")  # sandboxes tell the latter alone


def _field(file: Path, *names: str) -> int:
    """The first of these fields that a file has, in bytes."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be read ({error.strerror}); the predictor needs Linux with /proc"
        ) from error
    for name in names:
        match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        if match is not None:
            return int(match[1]) * 1024
    raise ConfigurationError(f"{file} has no {names[0]}; the predictor needs Linux 4.5 or later")
