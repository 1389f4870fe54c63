"""Read all resources of the pod in one call, and compare them with the Pod's requests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from predictor.pod.accelerators import read_accelerators
from predictor.pod.compare import bound_memory, check_devices, memory_notes, take_share
from predictor.pod.memory import CGROUP_ROOT, PROC, read_memory, read_own_anonymous
from predictor.pod.own_pod import SERVICE_ACCOUNT, read_own_pod
from predictor.pod.pod_spec import OwnPod, OwnPodUnknown
from predictor.pod.processors import read_processors
from predictor.pod.resources import MEMORY_FILESYSTEMS, Memory, PodResources, Volume
from predictor.pod.volume import read_volume


def read_resources(
    offload_folder: Path | None,
    *,
    gpu_fraction: float | None = None,
    environ: Mapping[str, str] = os.environ,
    cgroup_root: Path = CGROUP_ROOT,
    proc: Path = PROC,
    service_account: Path = SERVICE_ACCOUNT,
    api_host: str | None = None,
    others: Sequence[int] = (),
) -> PodResources:
    """Return the resources that a model can be placed on.

    Args:
        offload_folder: The folder for offloaded blocks, which is created; None for no folder.
        gpu_fraction: This process's share of each device, where devices are shared.
        environ: The environment; `read_own_pod` lists the variables that are used.
        cgroup_root: The mount point of control groups if ``/proc/self/mountinfo`` lists none.
        proc: The proc file system.
        service_account: Folder of the service account's token, CA and namespace.
        api_host: URL of the API server; None takes the cluster's own.
        others: Further processes of this server.

    Raises:
        ConfigurationError: The Pod asks for devices that are not there, a device or the offload
            volume does not respond, or an argument is invalid.
    """
    folder = None if offload_folder is None else offload_folder.resolve()
    visible = read_accelerators()
    memory = read_memory(cgroup_root=cgroup_root, proc=proc)
    pod: OwnPod | None = None
    notes: list[str] = []
    try:
        pod = read_own_pod(folder, environ=environ, service_account=service_account, host=api_host)
    except OwnPodUnknown as unknown:
        notes.append(str(unknown))
    if pod is not None:
        notes += (*pod.notes, *check_devices(visible, pod, gpu_fraction))
        memory = bound_memory(memory, pod, read_own_anonymous(others=others, proc=proc))
        notes += memory_notes(memory, pod)
    volume = None if folder is None else _read_volume(folder, pod, memory, proc)
    return PodResources(
        accelerators=take_share(visible, gpu_fraction),
        memory=memory,
        volume=volume,
        processors=read_processors(cgroup_root=cgroup_root, proc=proc),
        notes=(*notes, *_volume_notes(volume, pod)),
    )


def _read_volume(folder: Path, pod: OwnPod | None, memory: Memory, proc: Path) -> Volume:
    volume = read_volume(folder, pod, proc=proc)
    if volume.filesystem not in MEMORY_FILESYSTEMS:
        return volume
    return replace(volume, available=min(volume.available, memory.available))


def _volume_notes(volume: Volume | None, pod: OwnPod | None) -> tuple[str, ...]:
    if volume is None:
        return ()
    notes = []
    if not volume.writable:
        notes.append(f"The offload folder {volume.path} cannot be written.")
    if volume.filesystem in MEMORY_FILESYSTEMS:
        notes.append(
            f"The offload folder {volume.path} is in memory ({volume.filesystem}): every byte "
            f"there counts against the memory limit; use a disk."
        )
    if pod is not None and pod.offload is not None and pod.offload.partial:
        notes.append(
            f"The offload volume {pod.offload.volume} is mounted by subPath: what its other "
            f"folders take is not seen."
        )
    return tuple(notes)
