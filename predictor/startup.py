"""A start from top to bottom: settings, checkpoint, footprint, placement, weights, engine, task.

This is the one place that composes the floors below it. `predictor plan` stops after the placement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from predictor.checkpoint.checkpoint import Checkpoint, fetch_weights, open_directory, open_hub
from predictor.checkpoint.task_detection import GENERATING
from predictor.constraints import (
    largest_batch,
    max_model_len,
    offload_of,
    placement_options,
    serving_dtype,
)
from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.warmup import open_encoder_engine
from predictor.engine.generation.warmup import open_engine
from predictor.errors import EngineBroken
from predictor.metrics import EngineMetrics, WeightMetrics
from predictor.placement.plan import Placement
from predictor.placement.planner import plan
from predictor.placement.units import Footprint
from predictor.pod.memory import read_own_anonymous
from predictor.pod.resources import PodResources
from predictor.profiling.footprint import build_on_meta, measure_footprint
from predictor.settings import Settings
from predictor.tasks.encoder_task import EncoderTask
from predictor.tasks.loading import (
    EncoderDefaults,
    open_encoder_task,
    open_generation,
    open_tokenizer,
)
from predictor.tasks.task import Task
from predictor.weights import audit
from predictor.weights.block_source import OffloadConfig
from predictor.weights.loader import Loaded, load
from predictor.weights.progress import Progress


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model whose placement is decided and of which no weight is read yet.

    Attributes:
        checkpoint: The files of the model.
        skeleton: The model on the meta device.
        footprint: The memory that it needs.
        placement: The device of each of its parts.
        threads: Threads to compute with; None leaves the number to torch.
        chunk: Most tokens of one forward pass, for which the activations were planned.
        offload: How offloaded blocks are stored.
    """

    checkpoint: Checkpoint
    skeleton: Any
    footprint: Footprint
    placement: Placement
    threads: int | None
    chunk: int
    offload: OffloadConfig


@dataclass(frozen=True, slots=True)
class Started:
    """A model that is loaded and ready.

    Attributes:
        task: The task that answers requests.
        weights: The loaded weights.
    """

    task: Task
    weights: Loaded


def open_checkpoint(settings: Settings, *, needs_weights: bool = True) -> Checkpoint:
    """Open the checkpoint that the settings name, on the hub or in a directory.

    Args:
        settings: The settings.
        needs_weights: Whether to refuse a bare ``config.json``, which is enough for a plan.

    Raises:
        CheckpointError: The checkpoint cannot be served.
        HubUnreachable: The checkpoint is on the hub, which cannot be reached.
    """
    rules: dict[str, Any] = {
        "task": settings.task,
        "allow_pickle": settings.allow_pickle,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.model_id is not None:
        return open_hub(settings.model_id, settings.model_revision, **rules)
    return open_directory(settings.model_dir, needs_weights=needs_weights, **rules)


def prepare(settings: Settings, checkpoint: Checkpoint, resources: PodResources) -> Prepared:
    """Decide the placement of a model, without reading a weight.

    Raises:
        DoesNotFit: No placement fits.
        ConfigurationError: A setting is invalid for this model or this pod.
    """
    dtype = serving_dtype(settings, checkpoint)
    task = checkpoint.task
    skeleton = build_on_meta(
        checkpoint.config, dtype, task, trust_remote_code=settings.trust_remote_code
    )
    length = max_model_len(settings, checkpoint, skeleton)
    chunk, rows = largest_batch(settings, task, skeleton, length)
    footprint = measure_footprint(
        skeleton,
        max_model_len=length,
        prefill_chunk=chunk,
        max_batch_size=rows,
        is_encoder=task not in GENERATING,
        stored_dtype=checkpoint.dtype,
        stored_kind=checkpoint.kind,
    )
    options = placement_options(settings, checkpoint, footprint, resources, max_batch_size=rows)
    return Prepared(
        checkpoint,
        skeleton,
        footprint,
        plan(footprint, resources, options),
        resources.processors,
        chunk,
        offload_of(settings, footprint, resources),
    )


def bring_up(
    settings: Settings,
    prepared: Prepared,
    progress: Progress,
    on_broken: Callable[[EngineBroken], None] | None = None,
) -> Started:
    """Load a model and warm it up.

    Args:
        settings: The settings.
        prepared: The model and its placement.
        progress: Reports the progress of loading.
        on_broken: Called in another thread if the model fails permanently.

    Raises:
        CheckpointError: The checkpoint is incomplete.
        HubUnreachable: The weights are on the hub, which cannot be reached.
        LoadFailed: A read failed.
    """
    prepared = replace(prepared, checkpoint=fetch_weights(prepared.checkpoint))
    gpus = audit.wake_gpus(prepared.placement)
    before, metrics = read_own_anonymous(), WeightMetrics(settings.model_name)
    loaded = load(
        prepared.checkpoint,
        prepared.placement,
        prepared.offload,
        trust_remote_code=settings.trust_remote_code,
        progress=progress,
        skeleton=prepared.skeleton,
        metrics=metrics,
        pinned_fraction=settings.pinned_memory_fraction,
    )
    # Before the first forward pass, which loads kernels on a GPU: they take main memory too.
    held = read_own_anonymous() - before
    audit.compare(prepared.placement, held=held, buffers=loaded.buffer_bytes)
    audit.compare_gpus(
        prepared.placement,
        before=gpus,
        after=audit.read_gpus(prepared.placement),
        slots=loaded.device_bytes,
    )
    try:
        task = _open(settings, prepared, loaded, metrics, on_broken)
    except BaseException:
        loaded.release()
        raise
    loaded.serve()
    return Started(task, loaded)


def _open(
    settings: Settings,
    prepared: Prepared,
    loaded: Loaded,
    metrics: WeightMetrics,
    on_broken: Callable[[EngineBroken], None] | None,
) -> Task:
    common: dict[str, Any] = {
        "threads": prepared.threads,
        "metrics": EngineMetrics(settings.model_name, metrics),
        "warmup_cache": loaded.warmup_cache,
        "on_broken": on_broken,
    }
    path, task = prepared.checkpoint.path, prepared.checkpoint.task
    tokenizer = open_tokenizer(path, trust_remote_code=settings.trust_remote_code)
    length, placement = prepared.footprint.max_model_len, prepared.placement
    if task in GENERATING:
        engine = open_engine(
            loaded.model,
            placement,
            prefill_chunk=prepared.chunk,
            max_sequences=settings.max_batch_size,
            **common,
        )
        return open_generation(
            loaded.model, tokenizer, engine, max_model_len=length, max_length=settings.max_length
        )
    encoder_defaults = EncoderDefaults(
        settings.return_probabilities, settings.return_raw_logits, settings.return_offsets_mapping
    )
    config = loaded.model.config
    spec = open_encoder_task(
        task, path, tokenizer, config, max_model_len=length, defaults=encoder_defaults
    )
    limits = BatchLimits(prepared.chunk, settings.max_batch_size, delay=settings.max_batch_delay)
    return EncoderTask(
        spec,
        open_encoder_engine(loaded.model, placement, spec.postprocess, limits=limits, **common),
    )
