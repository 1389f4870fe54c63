"""The deployment of an imported model: an estimate, since nothing was planned.

The estimate puts the whole model in main memory, whether or not there are GPUs. The model may need
less; `predictor plan` calculates it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from predictor.deployment.sizing import (
    PROCESSORS,
    SET_ELSEWHERE,
    Requirements,
    claim_size,
    to_resource_name,
)
from predictor.dtypes import item_bytes
from predictor.migration.display import one_line
from predictor.migration.translate import Translation
from predictor.quantity import format_bytes
from predictor.settings import Settings, explicit_settings

GPU = "nvidia.com/gpu"
"""The resource name of one GPU in most clusters."""

_GIB = 1024**3
_BESIDE_WEIGHTS = 4 * _GIB
"""Bytes besides the weights. The process takes a quarter; KV cache, staging and requests the rest.
"""

UNKNOWN_MEMORY, UNKNOWN_CLAIM = 16 * _GIB, 64 * _GIB
"""Bytes for a model of unknown size: one that is still on the hub."""


def served_bytes(weights: int, stored: str | None, settings: Settings) -> int:
    """Return the bytes of all weights in the dtype in which they are served.

    Args:
        weights: Bytes of all weights as stored.
        stored: The stored dtype; None if unknown.
        settings: The settings that serve the model.
    """
    if stored is None or settings.dtype == "auto":
        return weights
    return weights * item_bytes(settings.dtype) // item_bytes(stored)


def estimate_requirements(
    translation: Translation, settings: Settings, weights: int
) -> Requirements:
    """Return the resources and settings for serving an imported model.

    Args:
        translation: The result of translating TorchServe's settings.
        settings: The settings in the imported directory.
        weights: Bytes of all weights as served; 0 if the model is still on the hub.
    """
    explicit = explicit_settings(settings, translation.setup_config, {})
    memory = math.ceil((weights + _BESIDE_WEIGHTS) / _GIB) * _GIB
    claim = None if settings.offload_folder is None else claim_size(weights)
    if settings.model_id is not None:
        memory, claim = UNKNOWN_MEMORY, UNKNOWN_CLAIM
    return Requirements(
        resource_name=to_resource_name(translation.name),
        name=translation.name,
        model_id=settings.model_id,
        model_revision=settings.model_revision if settings.model_id is not None else None,
        accelerators={GPU: translation.gpus} if translation.gpus else {},
        processors=PROCESSORS,
        memory=memory,
        claim=claim,
        request_timeout=settings.request_timeout,
        grace_period=settings.grace_period,
        settings={name: value for name, value in explicit.items() if name not in SET_ELSEWHERE},
    )


def comments(
    archive: str, requirements: Requirements, weights: int, plan: str, flags: Sequence[str]
) -> list[str]:
    """Return the comments at the top of the deployment files, a line each.

    Args:
        archive: The name of the imported archive.
        requirements: The resources and settings in the files.
        weights: Bytes of all weights as served.
        plan: The command that plans the model.
        flags: Flags that serving needs and that the files leave out.
    """
    lines = [
        f"From TorchServe's {one_line(archive, 128)}, as its files say; torchserve-report.md says "
        "what became of each key"
    ]
    lines += [f"It is served with {flag} only: add it if you trust its author" for flag in flags]
    if requirements.model_id is None:
        lines.append(
            f"Main memory holds all weights, {format_bytes(weights)}, and 4 GiB besides. Less may "
            "do:"
        )
    else:
        lines.append("Nothing is known here of the model's size: 16Gi and 64Gi stand for it, and")
    return [*lines, f"{one_line(plan, 512)}, with what there is, tells"]


def plan_command(model: str, gpus: int) -> str:
    """Return the command that plans a model, given its directory or its name on the hub."""
    return f"predictor plan {model}{f' --gpus {gpus}x24GiB' if gpus else ''} --memory 16GiB"
