"""Interpret a Pod's description: its devices, limits and offload volume. Reads nothing.

Knows the names of the resources and the forms of volumes; `own_pod` fetches the JSON. Every sum is
what is written in the Pod, not what is really there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from predictor.quantity import parse_bytes

MAIN_CONTAINER = "kserve-container"
"""KServe's name for the container that serves (and what it calls a lone one)."""

_KINDS = {
    "cuda": re.compile(
        r"nvidia\.com/(gpu|mig-\d+g\.\d+gb(\.me)?)(\.shared)?|amd\.com/(gpu|\w+_nps\d+)"
    ),
    # Not the plugin's i915_monitoring, tiles, millicores and memory.max, which are no devices.
    "xpu": re.compile(r"gpu\.intel\.com/(i915|xe)"),
    "hpu": re.compile(r"habana\.ai/gaudi"),
}


class OwnPodUnknown(Exception):
    """The own Pod cannot be read; the text is one sentence for the log, and the start goes on."""


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """Accelerators of one resource that the container asks for.

    Attributes:
        resource: As in the Pod: ``nvidia.com/gpu``, ``nvidia.com/mig-3g.20gb``...
        count: How many.
        kind: torch's device type that they appear as; ``hpu`` is one that torch alone lacks.
    """

    resource: str
    count: int
    kind: str

    @property
    def shared(self) -> bool:
        """Whether the resource says that its cards are time-sliced."""
        return self.resource.endswith(".shared")

    @property
    def sliced(self) -> bool:
        """Whether the resource is a MIG slice."""
        return "/mig-" in self.resource


@dataclass(frozen=True, slots=True)
class OffloadMount:
    """The volume that holds the offload folder, as the Pod describes it.

    Attributes:
        volume: The volume's name in the Pod.
        path: Where the container mounts it.
        kind: ``"persistentVolumeClaim"``, ``"ephemeral"``, ``"emptyDir"``, ``"hostPath"``...
        claim: The PersistentVolumeClaim behind it; None for other kinds.
        size: Bytes of the claim, or an emptyDir's ``sizeLimit``; None where nobody says.
        in_memory: Whether it is an emptyDir of medium ``Memory``.
        partial: Whether only a folder of the volume is mounted (``subPath``).
    """

    volume: str
    path: Path
    kind: str
    claim: str | None
    size: int | None
    in_memory: bool
    partial: bool


@dataclass(frozen=True, slots=True)
class OwnPod:
    """What this process's Pod asks for.

    Attributes:
        name: The Pod's name.
        namespace: Its namespace.
        container: The container of this process.
        gpus: Accelerators that the container asks for.
        device_claims: Whether devices come by ResourceClaims (DRA), whose number is not stated.
        memory_limit: Bytes; None without a limit.
        memory_request: Bytes; None without a request.
        ephemeral_storage_limit: Bytes; None without a limit.
        offload: The volume of the offload folder; None on the container's own file system.
        notes: Sentences for the log.
    """

    name: str
    namespace: str
    container: str
    gpus: tuple[GpuRequest, ...]
    device_claims: bool
    memory_limit: int | None
    memory_request: int | None
    ephemeral_storage_limit: int | None
    offload: OffloadMount | None
    notes: tuple[str, ...] = ()


class Resources(TypedDict, total=False):
    """``resources`` of a container, or of the whole Pod."""

    limits: dict[str, str]
    requests: dict[str, str]
    claims: list[dict[str, str]]


class VolumeMount(TypedDict, total=False):
    """One of a container's ``volumeMounts``."""

    name: str
    mountPath: str
    subPath: str
    subPathExpr: str


class Container(TypedDict, total=False):
    """One of a Pod's ``containers``."""

    name: str
    resources: Resources
    volumeMounts: list[VolumeMount]


class Spec(TypedDict, total=False):
    """A Pod's ``spec``."""

    containers: list[Container]
    resources: Resources
    volumes: list[dict[str, object]]


class Metadata(TypedDict):
    """The part of ``metadata`` that is read."""

    name: str
    namespace: str


class PodJson(TypedDict):
    """The part of a Pod that is read."""

    metadata: Metadata
    spec: Spec


def describe(pod: PodJson, container_name: str | None, folder: Path | None) -> OwnPod:
    """Returns what a Pod says about one of its containers; a claim's size is not in it.

    Args:
        pod: The Pod as the API server gives it.
        container_name: This process's container; None finds KServe's, or the only one.
        folder: The offload folder.

    Raises:
        OwnPodUnknown: It is not clear which container is this process's.
    """
    spec = pod["spec"]
    container = _own_container(spec["containers"], container_name)
    resources = container.get("resources") or {}
    limits = {**(spec.get("resources", {}).get("limits") or {}), **(resources.get("limits") or {})}
    requests = resources.get("requests") or {}
    return OwnPod(
        name=pod["metadata"]["name"],
        namespace=pod["metadata"]["namespace"],
        container=container["name"],
        gpus=_gpus({**requests, **limits}),
        device_claims=bool(resources.get("claims")),
        memory_limit=_quantity(limits, "memory"),
        memory_request=_quantity(requests, "memory"),
        ephemeral_storage_limit=_quantity(limits, "ephemeral-storage"),
        offload=None if folder is None else _offload_mount(pod, container, folder),
    )


def _own_container(containers: list[Container], wanted: str | None) -> Container:
    named = {container["name"]: container for container in containers}
    if wanted and wanted not in named:
        raise OwnPodUnknown(
            f"The Pod has no container {wanted!r} (it has {', '.join(named)}), so its limits are "
            f"unknown; correct CONTAINER_NAME."
        )
    if wanted or MAIN_CONTAINER in named:
        return named[wanted or MAIN_CONTAINER]
    if len(containers) > 1:
        raise OwnPodUnknown(
            f"The Pod has the containers {', '.join(named)} and none is named {MAIN_CONTAINER}, "
            f"so its limits are unknown; say by CONTAINER_NAME which one this is."
        )
    return containers[0]


def _gpus(amounts: Mapping[str, str]) -> tuple[GpuRequest, ...]:
    requests = (
        GpuRequest(resource, parse_bytes(amount), kind)
        for resource, amount in amounts.items()
        for kind, pattern in _KINDS.items()
        if pattern.fullmatch(resource)
    )
    return tuple(request for request in requests if request.count)


def _offload_mount(pod: PodJson, container: Container, folder: Path) -> OffloadMount | None:
    mounts = [
        mount
        for mount in container.get("volumeMounts") or ()
        if folder.is_relative_to(Path(mount["mountPath"]).resolve())
    ]
    if not mounts:
        return None
    mount = max(mounts, key=lambda mount: len(Path(mount["mountPath"]).resolve().parts))
    kind, details = _volume(pod["spec"], mount["name"])
    return OffloadMount(
        volume=mount["name"],
        path=Path(mount["mountPath"]).resolve(),
        kind=kind,
        claim=_claim(pod["metadata"]["name"], mount["name"], kind, details),
        size=_quantity(details, "sizeLimit"),
        in_memory=details.get("medium") == "Memory",
        partial=bool(mount.get("subPath") or mount.get("subPathExpr")),
    )


def _volume(spec: Spec, name: str) -> tuple[str, Mapping[str, str]]:
    for volume in spec.get("volumes") or ():
        if volume["name"] == name:
            for kind, details in volume.items():
                if isinstance(details, dict):
                    return kind, details
    return "unknown", {}


def _claim(pod: str, volume: str, kind: str, details: Mapping[str, str]) -> str | None:
    if kind == "ephemeral":
        return f"{pod}-{volume}"  # Kubernetes names the claim of a generic ephemeral volume so
    return details["claimName"] if kind == "persistentVolumeClaim" else None


def _quantity(amounts: Mapping[str, str], name: str) -> int | None:
    return parse_bytes(amounts[name]) if name in amounts else None
