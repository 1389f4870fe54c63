"""What serving a planned model needs of a cluster, in numbers: GPUs, memory, a claim, settings.

Pure arithmetic over a placement and what it was made with. How a cluster is asked for it is
`deploy`'s business, and what a pod then finds is `pod`'s.
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
"""Processors to ask for where none were stated or measured: one is the server's, the others read
blocks and feed the GPUs. Without a number KServe's webhook limits a container to one."""

FILESYSTEM_SHARE = 0.03
FILESYSTEM_BYTES = 64 * 1024**2
"""What ext4 keeps of a claim, both together; from 1 GiB to 400 GiB 1.8 to 6.5 % were measured."""

_GIB = 1024**3
BY_OTHERS = {
    *("model_name", "model_id", "model_revision", "model_dir", "offload_folder"),
    *("host", "http_port", "grpc_port"),
}
"""Settings that the chart and the runtime make themselves, or that have a field of their own."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What serving a planned model needs.

    Attributes:
        title: A name for its resources.
        name: The name it is served under; None where none was given.
        model_id: The hub's repository that the predictor fetches; None where it lies elsewhere.
        model_revision: Branch, tag or commit of that.
        accelerators: How many of each extended resource.
        processors: How many to ask for.
        memory: Bytes of the container's memory limit.
        claim: Bytes of the offload volume; None where nothing has to be written.
        request_timeout: Seconds after which a request is given up.
        grace_period: Seconds that running requests get to finish.
        settings: All other settings that were given, as JSON values.
    """

    title: str
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


def needs(
    placement: Placement,
    resources: PodResources,
    settings: Settings,
    given: Mapping[str, Any],
    *,
    stored_dtype: str | None,
    gpu_resource: str,
    processors: int | None,
) -> Needs:
    """Returns what a pod must be given so that this placement comes out there.

    Args:
        placement: The plan.
        resources: What it was made with.
        settings: The settings it was made with.
        given: Those of them that were given, as JSON values.
        stored_dtype: The checkpoint's dtype; None is the one that is served.
        gpu_resource: What the cluster calls one GPU: ``nvidia.com/gpu``.
        processors: Processors to ask for; None asks for those that were measured.

    Raises:
        ConfigurationError: Main memory was neither stated nor is it limited here.
    """
    if not resources.memory.limit:
        raise ConfigurationError(
            "The container needs a memory limit, and nothing limits main memory here; state it "
            "with --memory."
        )
    gpus = len(resources.accelerators)
    download = 0 if settings.model_id is None else _stored_bytes(placement, stored_dtype)
    return Needs(
        title=title_of(given.get("model_name") or settings.model_id or _folder(settings.model_dir)),
        name=given.get("model_name"),
        model_id=settings.model_id,
        model_revision=settings.model_revision,
        accelerators={gpu_resource: gpus} if gpus else {},
        processors=processors or resources.processors or PROCESSORS,
        memory=resources.memory.limit,
        claim=_claim(placement, resources, settings.memory_headroom, download),
        request_timeout=settings.request_timeout,
        grace_period=settings.grace_period,
        settings={name: value for name, value in given.items() if name not in BY_OTHERS},
    )


def title_of(name: str) -> str:
    """Returns a name that KServe takes for a model: of its own, or of the hub's or its folder's."""
    label = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower())[:40].strip("-")
    return label if label[:1].isalpha() else f"model-{label}".rstrip("-")


def _folder(path: Path) -> str:
    return (path.parent if path.name == "config.json" else path).name.removesuffix(".json")


def _stored_bytes(placement: Placement, stored_dtype: str | None) -> int:
    """Bytes of the checkpoint, which are downloaded before a block is placed."""
    served = item_bytes(placement.dtype)
    stored = served if stored_dtype is None else item_bytes(stored_dtype)
    return sum(tier.weights for tier in placement.tiers) * stored // served


def _claim(
    placement: Placement, resources: PodResources, headroom: float, download: int
) -> int | None:
    """Bytes of the volume: what was planned with, and no less than holds what is written."""
    disk, stated = placement.tier("disk"), 0
    written = float(download)
    if disk.units and resources.volume is not None:
        stated = resources.volume.available
        written += disk.planned / (1 - headroom)
    return claim_of(written, at_least=stated) if written else None


def claim_of(written: float, *, at_least: int = 0) -> int:
    """Returns the bytes to claim, in whole GiB, so that so many can be written there."""
    formatted = (written + FILESYSTEM_BYTES) / (1 - FILESYSTEM_SHARE)
    return math.ceil(max(at_least, formatted) / _GIB) * _GIB
