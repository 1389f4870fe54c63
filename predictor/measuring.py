"""Measures the memory of a model by settings and files, on the meta device."""

from __future__ import annotations

from typing import Any

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.lengths import Lengths
from predictor.checkpoint.task_detection import GENERATING
from predictor.engine.trial import check_one_token
from predictor.linear.layers import PackedLayers
from predictor.placement.units import Footprint
from predictor.profiling.footprint import measure_footprint


def measure_model(
    skeleton: Any,
    checkpoint: Checkpoint,
    packed: PackedLayers,
    lengths: Lengths,
    batch: tuple[int, int, int],
    unbatchable: str | None,
) -> Footprint:
    """Return the footprint of a model alone, which has computed at least a token on meta.

    Args:
        skeleton: The model on the meta device.
        checkpoint: Its files.
        packed: Its layers that stay packed.
        lengths: The most tokens of a sequence.
        batch: Most tokens and sequences of a forward pass, and tokens up to which the first may
            grow; 0 for no more.
        unbatchable: Why it generates one sequence at a time; None if it does not.

    Raises:
        ModelUnusable: The model cannot compute a token.
    """
    footprint = measure_footprint(
        skeleton,
        max_model_len=lengths.total,
        max_source_len=lengths.source,
        prefill_chunk=batch[0],
        max_batch_size=batch[1],
        largest_chunk=batch[2],
        is_encoder=checkpoint.task not in GENERATING,
        stored_dtype=checkpoint.dtype,
        stored_kind=checkpoint.kind,
        packed=packed,
    )
    if not footprint.probed:
        check_one_token(skeleton)
    return footprint if unbatchable is None else footprint.with_own_caches()
