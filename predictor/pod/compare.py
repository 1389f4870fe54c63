"""Compare the Pod's requests with the measured resources, and take shares of shared devices.

These are pure decisions over measured values: nothing is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from predictor.errors import ConfigurationError
from predictor.pod.pod_spec import GpuRequest, OwnPod
from predictor.pod.resources import Accelerator, Memory
from predictor.quantity import format_bytes

_CHECKS = {
    "cuda": (
        "check CUDA_VISIBLE_DEVICES (HIP_VISIBLE_DEVICES on AMD) and NVIDIA_VISIBLE_DEVICES in the "
        "container, that the image's torch is built for these devices, and the node's driver and "
        "device plugin"
    ),
    "xpu": (
        "check ZE_AFFINITY_MASK in the container, that the image's torch is built for XPU, and the "
        "node's driver and device plugin"
    ),
    "hpu": "this predictor runs on NVIDIA, AMD and Intel GPUs; ask for one of those instead",
}


def check_devices(
    visible: Sequence[Accelerator], pod: OwnPod, gpu_fraction: float | None
) -> tuple[str, ...]:
    """Return sentences for the log about harmless differences of requested and visible devices.

    Args:
        visible: The devices that torch sees.
        pod: The requests and limits of the Pod.
        gpu_fraction: This process's share of each device. If it is stated, devices are shared.

    Raises:
        ConfigurationError: The Pod asks for devices that torch does not see.
    """
    notes = []
    for kind in sorted({request.kind for request in pod.gpus}):
        requests = [request for request in pod.gpus if request.kind == kind]
        count = sum(device.kind == kind for device in visible)
        notes += _compare_kind(kind, requests, count, gpu_fraction)
    return (*notes, *_unrequested(visible, pod), *_unstated_share(pod, gpu_fraction))


def take_share(
    visible: Sequence[Accelerator], gpu_fraction: float | None
) -> tuple[Accelerator, ...]:
    """Return the devices with their free memory capped at this process's share.

    Args:
        visible: The devices that torch sees.
        gpu_fraction: Above 0, at most 1; None takes all free memory.

    Raises:
        ConfigurationError: The fraction is out of range.
    """
    if gpu_fraction is None:
        return tuple(visible)
    if not 0 < gpu_fraction <= 1:
        raise ConfigurationError(
            f"gpu_fraction is {gpu_fraction:g}; it must be above 0 and at most 1, such as 0.5 for "
            f"half of each device"
        )
    return tuple(
        replace(device, free=min(device.free, int(device.total * gpu_fraction)))
        for device in visible
    )


def bound_memory(memory: Memory, pod: OwnPod, own_anonymous: int) -> Memory:
    """Return the memory, capped at the Pod's limit if the control groups do not show that limit.

    Args:
        memory: The measured memory.
        pod: The requests and limits of the Pod.
        own_anonymous: Bytes of anonymous memory that this process holds already.
    """
    limit = pod.memory_limit
    if limit is None or (memory.limit is not None and memory.limit <= limit):
        return memory
    left = max(0, limit - own_anonymous)
    if memory.available <= left:
        return replace(memory, limit=limit)
    return Memory(limit=limit, available=left, source="the Pod's memory limit")


def memory_notes(memory: Memory, pod: OwnPod) -> tuple[str, ...]:
    """Return a sentence for the log if only the host limits the memory."""
    if memory.limit is not None:
        return ()
    request = "none" if pod.memory_request is None else format_bytes(pod.memory_request)
    return (
        f"Container {pod.container} has no memory limit (request: {request}): what the host has "
        f"available is planned with, and a node short of memory may evict the Pod; set a limit.",
    )


def _compare_kind(
    kind: str, requests: Sequence[GpuRequest], visible: int, gpu_fraction: float | None
) -> list[str]:
    count = sum(request.count for request in requests)
    if visible >= count:
        return []
    shared = gpu_fraction is not None or all(request.shared for request in requests)
    if visible and shared:
        return [
            f"The Pod asks for {_names(requests)} and torch sees {_devices(visible)}: shares of "
            f"one card appear as one device."
        ]
    hint = _CHECKS[kind]
    if visible and all(request.sliced for request in requests):
        hint = "CUDA shows one MIG slice to a process; ask for one larger slice"
    raise ConfigurationError(
        f"the Pod asks for {_names(requests)} and torch sees {_devices(visible)} of that kind; "
        f"{hint}"
    )


def _unrequested(visible: Sequence[Accelerator], pod: OwnPod) -> tuple[str, ...]:
    requested = sum(request.count for request in pod.gpus)
    if pod.device_claims or len(visible) <= requested:
        return ()
    return (
        f"The Pod asks for {_names(pod.gpus)} and torch sees {_devices(len(visible))} "
        f"(NVIDIA_VISIBLE_DEVICES=all, or a privileged container): all are used, though others may "
        f"own them; ask for them in resources.limits.",
    )


def _unstated_share(pod: OwnPod, gpu_fraction: float | None) -> tuple[str, ...]:
    shared = [request for request in pod.gpus if request.shared]
    if not shared or gpu_fraction is not None:
        return ()
    return (
        f"The Pod asks for {_names(shared)}, whose memory is not divided, and gpu_fraction is not "
        f"set: all memory that is free now is planned with; set gpu_fraction to this Pod's share.",
    )


def _names(requests: Sequence[GpuRequest]) -> str:
    return ", ".join(f"{request.count} {request.resource}" for request in requests) or "no GPU"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count or 'no'} devices"
