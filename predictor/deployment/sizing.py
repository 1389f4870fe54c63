"""The requirements of a planned model: GPUs, memory, a volume claim, settings.

Pure arithmetic over a placement and its inputs. `predictor.deployment.render` writes the result
as YAML, and `predictor.pod` reads what a pod then owns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.dtypes import item_bytes
from predictor.errors import ConfigurationError
from predictor.placement.plan import Placement
from predictor.pod.resources import PodResources
from predictor.settings import Settings

PROCESSORS = 4
"""Processors to request if none were stated or measured: one for the server, the others to read
blocks and feed the GPUs. Without a request, KServe's webhook limits a container to one."""

FILESYSTEM_SHARE = 0.03
FILESYSTEM_BYTES = 64 * 1024**2
"""The part of a claim that ext4 keeps: both added. For 1 to 400 GiB, 1.8 to 6.5 % were measured."""

_GIB = 1024**3
SET_ELSEWHERE = {
    *("model_name", "model_id", "model_revision", "model_dir", "offload_folder"),
    *("host", "http_port", "grpc_port"),
}
"""Settings that the chart and the runtime set themselves, or that have their own field."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """The resources and settings that serve a model.

    Attributes:
        resource_name: The name of its Kubernetes resources.
        name: The model's name in requests; None if unset.
        model_id: The repository on the hub; None if the model lies elsewhere.
        model_revision: Its branch, tag or commit.
        accelerators: The number of each extended resource.
        processors: The processors to request.
        memory: Bytes of the container's memory limit.
        claim: Bytes of the offload volume; None if nothing is written.
        request_timeout: Seconds after which a request is cancelled.
        grace_period: Seconds that running requests get to finish.
        settings: All other explicit settings, as JSON values.
    """

    resource_name: str
    name: str | None
    model_id: str | None
    model_revision: str | None
    accelerators: dict[str, int]
    processors: int
    memory: int
    claim: int | None
    request_timeout: float
    grace_period: float
    settings: dict[str, Any]

    @property
    def fetches_model(self) -> bool:
        """Whether the predictor itself fetches the model, and KServe mounts none."""
        return self.model_id is not None or "model_uri" in self.settings


def size_deployment(
    placement: Placement,
    resources: PodResources,
    settings: Settings,
    explicit: Mapping[str, Any],
    *,
    stored_dtype: str | None,
    gpu_resource: str,
    processors: int | None,
) -> Requirements:
    """Return the requirements of a pod in which planning gives the same placement.

    Args:
        placement: The plan.
        resources: The resources that it was planned for.
        settings: The settings that it was planned with.
        explicit: The settings that were set explicitly, as JSON values.
        stored_dtype: The checkpoint's dtype; None if it is the served one.
        gpu_resource: The cluster's resource name of one GPU, such as ``nvidia.com/gpu``.
        processors: Processors to request; None to request the measured ones.

    Raises:
        ConfigurationError: Main memory is neither stated nor limited here.
    """
    if not resources.memory.limit:
        raise ConfigurationError(
            "The container needs a memory limit, and nothing limits main memory here; state it "
            "with --memory."
        )
    gpus = len(resources.accelerators)
    fetches = settings.model_id is not None or settings.model_uri is not None
    download = _stored_bytes(placement, stored_dtype) if fetches else 0
    return Requirements(
        resource_name=to_resource_name(explicit.get("model_name") or _model_of(settings)),
        name=explicit.get("model_name"),
        model_id=settings.model_id,
        model_revision=settings.model_revision,
        accelerators={gpu_resource: gpus} if gpus else {},
        processors=processors or resources.processors or PROCESSORS,
        memory=resources.memory.limit,
        claim=_claim(placement, resources, settings.memory_headroom, download),
        request_timeout=settings.request_timeout,
        grace_period=settings.grace_period,
        settings={name: value for name, value in explicit.items() if name not in SET_ELSEWHERE},
    )


def to_resource_name(name: str) -> str:
    """Return a resource name that KServe accepts, made of a model's, repository's or folder's."""
    label = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower())[:40].strip("-")
    return label if label[:1].isalpha() else f"model-{label}".rstrip("-")


def _model_of(settings: Settings) -> str:
    """Return the name of the repository or the folder that the model comes from."""
    folder = (settings.model_uri or "").partition("?")[0] or settings.model_dir
    return settings.model_id or _folder_name(Path(folder))


def _folder_name(path: Path) -> str:
    is_file = path.name == "config.json" or path.name.startswith("model.safetensors")
    return (path.parent if is_file else path).name.removesuffix(".json")


def _stored_bytes(placement: Placement, stored_dtype: str | None) -> int:
    """Return the checkpoint's bytes, which are downloaded before any block is placed."""
    served = item_bytes(placement.dtype)
    stored = served if stored_dtype is None else item_bytes(stored_dtype)
    return sum(tier.weights for tier in placement.tiers) * stored // served


def _claim(
    placement: Placement, resources: PodResources, headroom: float, download: int
) -> int | None:
    """Return the volume's bytes: those planned with, or more if the written files need more."""
    disk, stated = placement.tier("disk"), 0
    written = float(download)
    if disk.planned and resources.volume is not None:
        stated = resources.volume.available
        written += disk.planned / (1 - headroom)
    return claim_size(written, at_least=stated) if written else None


def claim_size(written: float, *, at_least: int = 0) -> int:
    """Return the bytes to claim, in whole GiB, so that `written` bytes fit on its file system."""
    formatted = (written + FILESYSTEM_BYTES) / (1 - FILESYSTEM_SHARE)
    return math.ceil(max(at_least, formatted) / _GIB) * _GIB
