"""The offload volume: the bytes that may still be written there, and whether it is writable.

The file system alone is misleading. On a claim that is a folder of a larger one (NFS, a host's
disk) it shows the whole disk, and on an emptyDir the kubelet evicts the Pod long before the disk is
full.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from predictor.errors import ConfigurationError
from predictor.pod.memory import PROC
from predictor.pod.mounts import mount_of, read_mounts
from predictor.pod.pod_spec import OffloadMount, OwnPod
from predictor.pod.resources import Volume
from predictor.pod.usage import count_usage

logger = logging.getLogger(__name__)

OWN_FILESYSTEM_FACTOR = 1.25
"""A file system that is at most this many times as large as its claim counts as the claim's own.

Provisioners round up, and a shared disk is far larger. If a shared disk is mistaken for the claim's
own, too many bytes count as used, which is safe.
"""


def read_volume(folder: Path, own_pod: OwnPod | None, *, proc: Path = PROC) -> Volume:
    """Return the volume of the offload folder, which is created if possible.

    Args:
        folder: The offload folder.
        own_pod: The Pod, which describes the volume; None if it is unknown.
        proc: The proc file system.

    Raises:
        ConfigurationError: The folder is a file, or its file system does not respond.
    """
    folder = folder.resolve()
    writable = _try_to_write(folder)
    existing = _closest_existing(folder)
    try:
        filesystem = os.statvfs(existing)
    except OSError as error:
        raise ConfigurationError(
            f"the offload volume at {existing} does not answer ({error.strerror}); check its mount"
        ) from error
    mount = mount_of(existing, read_mounts(proc))
    free = filesystem.f_bavail * filesystem.f_frsize
    allowed = [] if own_pod is None else _allowances(own_pod, folder, filesystem)
    return Volume(
        path=folder,
        available=max(0, min(free, *allowed)) if allowed else free,
        writable=writable,
        filesystem="unknown" if mount is None else mount.filesystem,
        claim=own_pod.offload.claim if own_pod and own_pod.offload else None,
    )


def _try_to_write(folder: Path) -> bool:
    """Return whether a file can be created, despite permissions, read-only mounts and quotas."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".predictor-") as file:
            file.write(b"\0")
            file.flush()
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"the offload folder {folder} is or lies below a file; name a folder"
        ) from error
    except OSError:
        return False
    return True


def _closest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _allowances(own_pod: OwnPod, folder: Path, filesystem: os.statvfs_result) -> list[int]:
    """Return the bytes that each of the Pod's limits still leaves for the offload volume."""
    offload = own_pod.offload
    if offload is not None and offload.claim is not None:
        if offload.size is None:
            return []
        return [offload.size - _used_of_claim(offload, offload.size, filesystem)]
    limits = _local_limits(own_pod)
    if not limits:
        return []
    used = _used_below(folder if offload is None else offload.path)
    return [limit - used for limit in limits]


def _local_limits(own_pod: OwnPod) -> list[int]:
    """Return the sizes above which the kubelet evicts a Pod that writes to its node's disk."""
    offload = own_pod.offload
    if offload is None:
        limits = [own_pod.ephemeral_storage_limit]
    elif offload.kind != "emptyDir":
        limits = []
    elif offload.in_memory:  # it counts as memory, not as ephemeral storage
        limits = [offload.size]
    else:
        limits = [offload.size, own_pod.ephemeral_storage_limit]
    return [limit for limit in limits if limit is not None]


def _used_of_claim(offload: OffloadMount, size: int, filesystem: os.statvfs_result) -> int:
    total = filesystem.f_blocks * filesystem.f_frsize
    if total <= size * OWN_FILESYSTEM_FACTOR:
        return total - filesystem.f_bfree * filesystem.f_frsize
    return _used_below(offload.path)


def _used_below(folder: Path) -> int:
    usage = count_usage(folder)
    if not usage.complete:
        logger.warning(
            "not everything below %s could be counted: more of it may be used than planned with",
            folder,
        )
    return usage.used
