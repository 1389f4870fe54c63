"""Parse a Pod's description: the requests and limits of this process, from the API server's JSON.

This module knows the names of resources and the kinds of volumes; `own_pod` fetches the JSON. The
amounts are those written in the Pod, not the measured ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from predictor.quantity import parse_bytes

MAIN_CONTAINER = "kserve-container"
"""KServe's name of the container that serves, and of a container that is the only one."""

_KINDS = {
    "cuda": re.compile(
        r"nvidia\.com/(gpu|mig-\d+g\.\d+gb(\.me)?)(\.shared)?|amd\.com/(gpu|\w+_nps\d+)"
    ),
    # The plugin's i915_monitoring, tiles, millicores and memory.max are not devices.
    "xpu": re.compile(r"gpu\.intel\.com/(i915|xe)"),
    "hpu": re.compile(r"habana\.ai/gaudi"),
}


class OwnPodUnknown(Exception):
    """The own Pod cannot be read. The text is one sentence for the log, and the start continues."""


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """Accelerators of one resource that the container asks for.

    Attributes:
        resource: As in the Pod: ``nvidia.com/gpu``, ``nvidia.com/mig-3g.20gb``...
        count: The number of devices.
        kind: torch's device type of them; ``hpu`` is not part of torch itself.
    """

    resource: str
    count: int
    kind: str

    @property
    def shared(self) -> bool:
        """Whether the cards of this resource are time-sliced."""
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
        path: Its mount point in the container.
        kind: ``"persistentVolumeClaim"``, ``"ephemeral"``, ``"emptyDir"``, ``"hostPath"``...
        claim: The PersistentVolumeClaim behind it; None for other kinds.
        size: Bytes of the claim, or an emptyDir's ``sizeLimit``; None if it is not stated.
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
    """The requests and limits of this process's Pod.

    Attributes:
        name: The Pod's name.
        namespace: Its namespace.
        container: The container of this process.
        gpus: Accelerators that the container asks for.
        device_claims: Whether devices come from ResourceClaims (DRA), which state no number.
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
    """The part of ``metadata`` that is used."""

    name: str
    namespace: str


class PodJson(TypedDict):
    """The part of a Pod that is used."""

    metadata: Metadata
    spec: Spec


def describe(pod: PodJson, container_name: str | None, folder: Path | None) -> OwnPod:
    """Return the requests and limits of one container of a Pod, without a claim's size.

    Args:
        pod: The Pod as the API server returns it.
        container_name: This process's container; None selects KServe's, or the only one.
        folder: The offload folder.

    Raises:
        OwnPodUnknown: The container of this process cannot be determined.
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


def _own_container(containers: list[Container], name: str | None) -> Container:
    by_name = {container["name"]: container for container in containers}
    if name and name not in by_name:
        raise OwnPodUnknown(
            f"The Pod has no container {name!r} (it has {', '.join(by_name)}), so its limits are "
            f"unknown; correct CONTAINER_NAME."
        )
    if name or MAIN_CONTAINER in by_name:
        return by_name[name or MAIN_CONTAINER]
    if len(containers) > 1:
        raise OwnPodUnknown(
            f"The Pod has the containers {', '.join(by_name)} and none is named {MAIN_CONTAINER}, "
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
        return f"{pod}-{volume}"  # the name that Kubernetes gives to such a claim
    return details["claimName"] if kind == "persistentVolumeClaim" else None


def _quantity(amounts: Mapping[str, str], name: str) -> int | None:
    return parse_bytes(amounts[name]) if name in amounts else None
