"""The resources of the pod as one frozen value: the input of every placement decision.

All sizes are bytes that may be used now: memory that cannot be reclaimed is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device that torch sees.

    Attributes:
        index: torch's index of the device, from 0.
        kind: torch's device type: ``"cuda"`` (ROCm too) or ``"xpu"``.
        name: The driver's name of it.
        total: Bytes of the device, or of the MIG slice.
        free: Bytes that this pod may still use: free now, and its fraction of a shared device.
    """

    index: int
    kind: str
    name: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory.

    Attributes:
        limit: The tightest limit on this process's control groups; None without any limit.
        available: Bytes that can still be taken before the limit (or the host) is reached.
        source: The origin of the number, for logs: ``"cgroup v2 memory.max"``, ``"host"``...
    """

    limit: int | None
    available: int
    source: str


MEMORY_FILESYSTEMS = frozenset(["tmpfs", "ramfs"])
"""File systems whose bytes are in memory, as ``/proc/mounts`` names them."""


@dataclass(frozen=True, slots=True)
class Volume:
    """The offload volume.

    Attributes:
        path: The offload folder.
        available: Bytes that may still be written: the file system's free space, and no more than
            the claim's (or the ephemeral-storage limit's) size, less the used bytes.
        writable: Whether this process can write there.
        filesystem: Its type, as in ``/proc/mounts``.
        claim: The PersistentVolumeClaim behind it, if the Pod names one.
        stated: Whether the user stated the size; else it was measured.
    """

    path: Path
    available: int
    writable: bool
    filesystem: str
    claim: str | None
    stated: bool = False


@dataclass(frozen=True, slots=True)
class PodResources:
    """Everything that a model can be placed on.

    Attributes:
        accelerators: In torch's order; empty without any.
        memory: Main memory.
        volume: The offload volume; None without an offload folder.
        processors: Processors that may be kept busy; None if they were not measured.
        notes: Sentences for the log about unknown or adjusted resources.
    """

    accelerators: tuple[Accelerator, ...]
    memory: Memory
    volume: Volume | None
    processors: int | None = None
    notes: tuple[str, ...] = ()
