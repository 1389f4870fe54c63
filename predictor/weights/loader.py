"""Loads a model as a placement says, and returns it ready to run.

`load` is the one way from files to a running model. Offloaded parts are streamed by `streaming`.
"""

from __future__ import annotations

import contextlib
import logging

from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.linear.layers import PackedLayers
from predictor.metrics import WeightMetrics
from predictor.placement.plan import Placement
from predictor.quantity import format_bytes
from predictor.weights.filling import Filling
from predictor.weights.kept_blocks import read_kept_blocks
from predictor.weights.load_errors import translated_errors
from predictor.weights.load_steps import LoadSteps
from predictor.weights.loaded import Loaded
from predictor.weights.offload_config import OffloadConfig
from predictor.weights.progress import Progress

logger = logging.getLogger(__name__)


def load(
    checkpoint: Checkpoint,
    placement: Placement,
    offload: OffloadConfig,
    *,
    trust_remote_code: bool,
    progress: Progress,
    skeleton: PreTrainedModel,
    packed: PackedLayers,
    metrics: WeightMetrics,
    pinned_fraction: float,
) -> Loaded:
    """Load a model, with every part where the placement puts it.

    Args:
        checkpoint: Files on local disk.
        placement: The device of each part.
        offload: The offload configuration.
        trust_remote_code: Whether code that comes with the model may run.
        progress: Counts tensors and blocks.
        skeleton: The model on the meta device, for names and sizes.
        packed: Its layers that stay packed.
        metrics: The metrics of streaming.
        pinned_fraction: The fraction of main memory that may be page-locked.

    Raises:
        CheckpointError: The checkpoint lacks weights of the model, or has them in other shapes.
        ConfigurationError, LoadFailed: The offload folder cannot be used, or reading failed.
    """
    with contextlib.ExitStack() as undone, translated_errors():
        more = trust_remote_code, progress, metrics, pinned_fraction
        loading = LoadSteps.of(checkpoint, placement, offload, skeleton, packed, *more)
        resolver = loading.resolver()
        undone.callback(resolver.release)
        filling = Filling(loading.filled.extents(skeleton), metrics, progress)
        undone.callback(filling.close)
        with resolver.opened():
            model, dispatch, whole = loading.place(resolver)
        extents, was_read = read_kept_blocks(model, whole, loading.kept, placement, progress)
        copied, host_blocks = loading.make_resident(model)
        filling.change_to(loading.filled.extents(model))  # weights may have dtypes of their own
        loading.weights.check_unchanged()
        streaming = loading.stream(model, dispatch, extents.blocks, host_blocks)
        cache = loading.open_experts(model, extents, host_blocks)
        logger.info("Loaded: %s were read to stay in memory", format_bytes(copied + was_read))
        filling.give_to(model)
        undone.pop_all()
    warmup_cache = loading.warmup_cache(resolver, whole, filling)
    return Loaded(model, streaming, cache, resolver, warmup_cache, filling)
