"""Main memory that this process may still take: the tightest of its control groups, or the host.

Tools such as ``free`` and psutil show the host's memory. A process in a Pod that relies on them is
killed without a message. Swap is not counted, because a model in swap is too slow to serve.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from predictor.errors import ConfigurationError
from predictor.pod.cgroup import limited_groups
from predictor.pod.resources import Memory
from predictor.quantity import format_bytes

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")

PROCESSES = 608 * 1024**2
"""Bytes of main memory that the serving processes themselves hold when they plan: Python twice,
torch, transformers twice and kserve. 583 MiB of anonymous memory were measured in a control group
without a GPU, of which the fork for large bodies (`CodecProcess`) had 23 MiB; the memory of CUDA
was not measured."""


def read_memory(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> Memory:
    """Return the memory that can still be taken, never more than the host has available.

    Page cache does not count as used, since the kernel reclaims it. Memory of tmpfs, shared memory
    and that of other processes in the same group do.

    Raises:
        ConfigurationError: The host does not report its available memory.
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
    """Raise an error if the server would be killed before it has planned anything.

    Raises:
        ConfigurationError: The memory limit is too low for the server's processes themselves.
    """
    memory = read_memory(cgroup_root=cgroup_root, proc=proc)
    whole = memory.available + read_own_anonymous(proc=proc)
    if whole < PROCESSES:
        raise ConfigurationError(
            f"The predictor's own processes take {format_bytes(PROCESSES)} of main memory, and "
            f"{memory.source} leaves {format_bytes(whole)}; raise the container's memory limit."
        )


def read_own_anonymous(*, others: Iterable[int] = (), proc: Path = PROC) -> int:
    """Return the bytes of anonymous memory that this process holds.

    Args:
        others: Further processes of this server, whose memory is added.
        proc: The proc file system.

    Raises:
        ConfigurationError: The kernel does not report it.
    """
    names = ("RssAnon", "VmRSS")  # sandboxes report only the latter
    return sum(_field(proc / str(each) / "status", *names) for each in ("self", *others))


def _field(file: Path, *names: str) -> int:
    """Return the first of these fields that a file has, in bytes."""
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
