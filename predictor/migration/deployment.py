"""What an imported model needs of a cluster: an estimate, since nothing was planned.

Main memory holds the whole model, whatever goes to GPUs. Less may do; `predictor plan` finds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from predictor.deployment.sizing import BY_OTHERS, PROCESSORS, Needs, claim_of, item_bytes, title_of
from predictor.migration.mapping import one_line
from predictor.migration.translate import Translation
from predictor.quantity import format_bytes
from predictor.settings import Settings, explicit_settings

GPU = "nvidia.com/gpu"
"""What most clusters call one GPU."""

_GIB = 1024**3
_BESIDE_WEIGHTS = 4 * _GIB
"""The process takes a quarter of it; the rest is for KV cache, staging and requests."""

_UNKNOWN_MEMORY, _UNKNOWN_CLAIM = 16 * _GIB, 64 * _GIB
"""What stands for the needs of a model that is not here to be looked at."""


def served_bytes(weights: int, stored: str | None, settings: Settings) -> int:
    """Returns the bytes of all weights in the dtype that they are served in.

    Args:
        weights: Bytes of all weights as they are stored.
        stored: The dtype that they are stored in; None where that is not known.
        settings: The settings that serve them.
    """
    if stored is None or settings.dtype == "auto":
        return weights
    return weights * item_bytes(settings.dtype) // item_bytes(stored)


def needs_of(translation: Translation, settings: Settings, weights: int) -> Needs:
    """Returns what serving an imported model needs.

    Args:
        translation: What TorchServe's files say.
        settings: The settings that its directory makes.
        weights: Bytes of all weights as they are served; 0 where the hub alone knows.
    """
    given = explicit_settings(settings, translation.setup_config, {})
    memory = math.ceil((weights + _BESIDE_WEIGHTS) / _GIB) * _GIB
    claim = None if settings.offload_folder is None else claim_of(weights)
    if settings.model_id is not None:
        memory, claim = _UNKNOWN_MEMORY, _UNKNOWN_CLAIM
    return Needs(
        title=title_of(translation.name),
        name=translation.name,
        model_id=settings.model_id,
        model_revision=settings.model_revision if settings.model_id is not None else None,
        accelerators={GPU: translation.gpus} if translation.gpus else {},
        processors=PROCESSORS,
        memory=memory,
        claim=claim,
        request_timeout=settings.request_timeout,
        grace_period=settings.grace_period,
        settings={name: value for name, value in given.items() if name not in BY_OTHERS},
    )


def comments(
    archive: str, needs: Needs, weights: int, plan: str, flags: Sequence[str]
) -> list[str]:
    """Returns what the files that describe a deployment say of themselves, a line each.

    Args:
        archive: The name of what was imported.
        needs: What is written.
        weights: Bytes of all weights as they are served.
        plan: The command that tells what the model needs.
        flags: What must be said to serve it, and is not written.
    """
    lines = [
        f"From TorchServe's {one_line(archive, 128)}, as its files say; torchserve-report.md says "
        "what became of each key"
    ]
    lines += [f"It is served with {flag} only: add it if you trust its author" for flag in flags]
    if needs.model_id is None:
        lines.append(
            f"Main memory holds all weights, {format_bytes(weights)}, and 4 GiB besides. Less may "
            "do:"
        )
    else:
        lines.append("Nothing is known here of the model's size: 16Gi and 64Gi stand for it, and")
    return [*lines, f"{one_line(plan, 512)}, with what there is, tells"]


def plan_command(model: str, gpus: int) -> str:
    """Returns the command that plans a model: a directory, or its name on the hub."""
    return f"predictor plan {model}{f' --gpus {gpus}x24GiB' if gpus else ''} --memory 16GiB"
