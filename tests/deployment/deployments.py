"""The requirements of hand-made models on hand-made pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from predictor.deployment.sizing import Requirements, size_deployment
from predictor.placement.plan import Placement, PlacementOptions
from predictor.placement.planner import plan
from predictor.placement.units import Footprint
from predictor.pod.resources import Accelerator, Memory, PodResources, Volume
from predictor.pod.stated import PROCESSES
from predictor.settings import explicit_settings, read_settings
from tests.placement.small import MIB, footprint

GIB = 1024**3


def resources(*gpus: int, memory: int | None, disk: int | None = 400 * GIB) -> PodResources:
    """Return a pod with GPUs of these MiB and so many MiB of main memory for the plan."""
    return PodResources(
        accelerators=tuple(
            Accelerator(index, "cuda", "stated", size * MIB, size * MIB)
            for index, size in enumerate(gpus)
        ),
        memory=Memory(
            None if memory is None else memory * MIB + PROCESSES, (memory or 100) * MIB, "stated"
        ),
        volume=None if disk is None else Volume(Path("stated"), disk, True, "stated", None),
    )


OFFLOADED = resources(60, memory=16)
"""Holds five units on the GPU, one in main memory and one on disk. See `test_report`."""

RESIDENT = resources(60, 60, memory=16)
"""Holds the whole model on its GPUs."""


def placed(pod: PodResources, model: Footprint | None = None, **options: Any) -> Placement:
    """Return the plan of a model on a pod."""
    disk = None if pod.volume is None else pod.volume.available
    return plan(model or footprint(), pod, PlacementOptions(**{"disk": disk, **options}))


def requirements_of(
    pod: PodResources,
    *,
    model: Footprint | None = None,
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    **others: Any,
) -> Requirements:
    """Return the requirements of a model on a pod; `others` are arguments of `size_deployment`."""
    flags = {"model_dir": "/models/bloom-176b", **(flags or {})}
    environ = environ or {}
    settings = read_settings(flags, environ=environ)
    placement = placed(
        pod,
        model,
        headroom=settings.memory_headroom,
        expert_slots=settings.expert_slots == "auto",
    )
    explicit = explicit_settings(settings, flags, environ)
    others = {"stored_dtype": None, "gpu_resource": "nvidia.com/gpu", "processors": None, **others}
    return size_deployment(placement, pod, settings, explicit, **others)
