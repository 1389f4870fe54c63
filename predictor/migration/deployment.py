"""What an imported model needs of a cluster: an estimate, since nothing was planned.

Main memory holds the whole model, whatever goes to GPUs. Less may do; `predictor plan` finds it.
"""

from __future__ import annotations

import math

from predictor.migration.row import one_line
from predictor.migration.translate import Translation
from predictor.placement.needs import BY_OTHERS, PROCESSORS, Needs, claim_of, item_bytes, title_of
from predictor.quantity import format_bytes
from predictor.settings import Settings, told
from predictor.weights.checkpoint import Checkpoint

GPU = "nvidia.com/gpu"
"""What most clusters call one GPU."""

_GIB = 1024**3
_BESIDE_WEIGHTS = 4 * _GIB
"""The process takes a quarter of it; the rest is for KV cache, staging and requests."""


def served_bytes(checkpoint: Checkpoint, settings: Settings) -> int:
    """Returns the bytes of all weights in the dtype that they are served in."""
    weights = 0 if checkpoint.stored is None else checkpoint.stored.weight_bytes
    stored = checkpoint.dtype
    if stored is None or settings.dtype == "auto":
        return weights
    return weights * item_bytes(settings.dtype) // item_bytes(stored)


def needs_of(translation: Translation, settings: Settings, weights: int) -> Needs:
    """Returns what serving an imported model needs.

    Args:
        translation: What TorchServe's files say.
        settings: The settings that its directory makes.
        weights: Bytes of all weights as they are served.
    """
    given = told(settings, translation.setup_config, {})
    return Needs(
        title=title_of(translation.name),
        name=translation.name,
        model_id=None,
        model_revision=None,
        accelerators={GPU: translation.gpus} if translation.gpus else {},
        processors=PROCESSORS,
        memory=math.ceil((weights + _BESIDE_WEIGHTS) / _GIB) * _GIB,
        claim=None if settings.offload_folder is None else claim_of(weights),
        request_timeout=settings.request_timeout,
        grace_period=settings.grace_period,
        settings={name: value for name, value in given.items() if name not in BY_OTHERS},
    )


def comments(archive: str, directory: str, weights: int, gpus: int) -> list[str]:
    """Returns what the files that describe a deployment say of themselves, a line each."""
    plan = f"predictor plan {one_line(directory, 256)}{f' --gpus {gpus}x24GiB' if gpus else ''}"
    return [
        f"From TorchServe's {one_line(archive, 128)}, as its files say; torchserve-report.md says "
        "what became of each key",
        f"Main memory holds all weights, {format_bytes(weights)}, and 4 GiB besides. Less may do:",
        f"{plan} --memory 16GiB, with what there is, tells",
    ]
