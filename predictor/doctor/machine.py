"""Checks of the pod's GPUs, memory and processors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence

from predictor.doctor.check import Check, Surroundings
from predictor.errors import ConfigurationError
from predictor.pod.compare import check_devices
from predictor.pod.memory import check_process_fits, read_memory
from predictor.pod.own_pod import read_own_pod
from predictor.pod.pod_spec import OwnPod, OwnPodUnknown
from predictor.pod.processors import read_processors
from predictor.pod.resources import Accelerator
from predictor.quantity import format_bytes
from predictor.settings import Settings

_LEAST_SHARED_MEMORY = 16 * 1024**2
"""Bytes of /dev/shm below which libraries that use it fail."""

_LEAST_PINNED = 1024**3
"""Bytes of locked memory below which a driver may refuse to pin buffers for copies."""


ROOM_TO_IMPORT = 768 * 1024**2
"""Bytes that must be left for the checks that import torch, transformers and kserve. These took
368 MiB of anonymous memory without a GPU; a GPU's context takes more. Beside a server in the same
pod there may be less, and the kernel would end the server."""


def has_room(around: Surroundings) -> bool:
    """Return whether checks may import large libraries."""
    try:
        memory = read_memory(cgroup_root=around.cgroup_root, proc=around.proc)
    except ConfigurationError:
        return False
    return memory.available >= ROOM_TO_IMPORT


def check_pod(settings: Settings, around: Surroundings) -> Iterator[Check]:
    """Check that the own Pod can be read, and that its GPUs are there."""
    pod: OwnPod | None = None
    folder = settings.offload_folder
    try:
        pod = read_own_pod(
            None if folder is None else folder.resolve(),
            environ=around.environ,
            service_account=around.service_account,
            host=around.api_host,
        )
        yield Check("own Pod", "ok", f"The API server describes {pod.namespace}/{pod.name}.")
    except OwnPodUnknown as unknown:
        yield _unknown_pod(str(unknown), around)
    for note in () if pod is None else pod.notes:
        yield Check("own Pod", "warning", note, "The size of the claim is then not planned with.")
    try:
        visible = around.accelerators()
    except ConfigurationError as error:
        yield Check("GPUs", "failure", str(error), "Check the node's driver and device plugin.")
        return
    yield from _check_gpus(visible, pod, settings)


def _unknown_pod(sentence: str, around: Surroundings) -> Check:
    if around.api_host is None and "KUBERNETES_SERVICE_HOST" not in around.environ:
        return Check("own Pod", "skipped", sentence)
    return Check(
        "own Pod", "warning", sentence, "Without it, the size of a claim and GPUs are not compared."
    )


def _check_gpus(
    visible: Sequence[Accelerator], pod: OwnPod | None, settings: Settings
) -> Iterator[Check]:
    listed = ", ".join(f"{one.name} with {format_bytes(one.free)} free" for one in visible)
    finding = f"torch sees {len(visible)}: {listed}." if visible else "torch sees none."
    if pod is None:
        yield Check("GPUs", "ok" if visible else "skipped", finding)
        return
    try:
        notes = check_devices(visible, pod, settings.gpu_fraction)
    except ConfigurationError as error:
        remedy = "Check the GPU's resource name, the image, and the node's driver and plugin."
        yield Check("GPUs", "failure", str(error), remedy)
        return
    yield Check("GPUs", "ok", finding)
    for note in notes:
        yield Check("GPUs", "warning", note, "State what is meant, or ignore it if it is.")


def check_memory(around: Surroundings) -> Check:
    """Check that there is a memory limit, and that the server's own processes fit."""
    roots = {"cgroup_root": around.cgroup_root, "proc": around.proc}
    try:
        memory = read_memory(**roots)
        check_process_fits(**roots)
    except ConfigurationError as error:
        return Check("memory", "failure", str(error), "Raise resources.limits.memory.")
    left = f"{format_bytes(memory.available)} may be taken, by {memory.source}."
    if memory.limit is None:
        return Check(
            "memory",
            "warning",
            f"There is no limit: {left}",
            "Set resources.limits.memory, so that neighbours cannot make the node kill the pod.",
        )
    return Check("memory", "ok", f"The limit is {format_bytes(memory.limit)}: {left}")


def check_processors(around: Surroundings) -> Check:
    """Check how many processors may be used."""
    count = read_processors(cgroup_root=around.cgroup_root, proc=around.proc)
    finding = f"{count} may be used."
    if count >= 2:
        return Check("processors", "ok", finding)
    remedy = "Set resources.limits.cpu to at least 2: two processes serve a model."
    return Check("processors", "warning", finding, remedy)


def check_shared_memory(around: Surroundings) -> Check:
    """Check that shared memory is there and has room."""
    name, folder = "shared memory", around.shared_memory
    try:
        filesystem = os.statvfs(folder)
    except OSError as error:
        remedy = "Mount an emptyDir of medium Memory there (scratch.shmSize of the chart)."
        return Check(name, "failure", f"{folder} cannot be used: {error.strerror}.", remedy)
    free = filesystem.f_bavail * filesystem.f_frsize
    finding = f"{folder} has {format_bytes(free)} free. Files there count as memory."
    if not os.access(folder, os.W_OK):
        return Check(name, "failure", f"{folder} cannot be written.", "Mount it writable.")
    if free < _LEAST_SHARED_MEMORY:
        return Check(name, "warning", finding, "Raise scratch.shmSize of the chart.")
    return Check(name, "ok", finding)


def check_locked_memory() -> Check:
    """Check how much memory may be locked, which copies to a GPU need."""
    most, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if most == resource.RLIM_INFINITY:
        return Check("locked memory", "ok", "There is no limit.")
    finding = f"At most {format_bytes(most)} may be locked."
    if most >= _LEAST_PINNED:
        return Check("locked memory", "ok", finding)
    remedy = (
        "It matters only with a GPU: if pinned buffers are refused, raise the container runtime's "
        "LimitMEMLOCK."
    )
    return Check("locked memory", "ok", finding, remedy)
