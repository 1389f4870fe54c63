"""A start, top to bottom: settings, checkpoint, footprint, placement, weights, engine, task.

The rim's one composition of the floors below it; `predictor plan` walks it halfway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from predictor.engine.capability import why_serial
from predictor.engine.opening import open_engine
from predictor.errors import ConfigurationError, EngineBroken
from predictor.metrics import WeightMetrics
from predictor.placement.footprint import build_on_meta, measure_footprint
from predictor.placement.plan import Placement, Wishes
from predictor.placement.planner import plan
from predictor.placement.units import Footprint
from predictor.pod.memory import read_own_anonymous
from predictor.pod.resources import PodResources
from predictor.pod.usage import count_usage
from predictor.settings import Settings
from predictor.tasks.generation import TextGeneration
from predictor.tasks.loading import open_task
from predictor.weights import audit
from predictor.weights.checkpoint import (
    Checkpoint,
    context_length,
    fetch_weights,
    known_positions,
    open_directory,
    open_hub,
)
from predictor.weights.loader import Loaded, load
from predictor.weights.offload import Offload
from predictor.weights.progress import Progress
from predictor.weights.rewritten import folder_name
from predictor.weights.store_folder import store_file
from predictor.weights.store_writer import partial_of


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that was decided on and of which no weight was read.

    Attributes:
        checkpoint: Its files.
        skeleton: The model on the meta device.
        footprint: What it needs.
        placement: Where it goes.
        threads: Threads to compute with; None leaves that to torch.
        chunk: Prompt tokens in one pass, as the activations were planned for.
        offload: What is known and wanted of parts on disk.
    """

    checkpoint: Checkpoint
    skeleton: Any
    footprint: Footprint
    placement: Placement
    threads: int | None
    chunk: int
    offload: Offload


@dataclass(frozen=True, slots=True)
class Started:
    """A model that answers.

    Attributes:
        task: What answers.
        weights: What it answers with.
    """

    task: TextGeneration
    weights: Loaded


def open_checkpoint(settings: Settings, *, needs_weights: bool = True) -> Checkpoint:
    """Returns the model that the settings name, from the hub or a directory.

    Args:
        settings: The settings.
        needs_weights: Whether a bare ``config.json``, which is enough to plan, is not.

    Raises:
        CheckpointError: It cannot be served.
        HubUnreachable: It is on the hub, which cannot be reached.
    """
    rules = {
        "allow_pickle": settings.allow_pickle,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.model_id is not None:
        return open_hub(settings.model_id, settings.model_revision, **rules)
    return open_directory(settings.model_dir, needs_weights=needs_weights, **rules)


def prepare(settings: Settings, checkpoint: Checkpoint, resources: PodResources) -> Prepared:
    """Returns the placement of a model, decided without reading a weight.

    Raises:
        DoesNotFit: There is none.
        ConfigurationError: A wish makes no sense for this model or this pod.
    """
    dtype = _serving_dtype(settings, checkpoint)
    skeleton = build_on_meta(checkpoint.config, dtype, trust_remote_code=settings.trust_remote_code)
    length = _max_model_len(settings, checkpoint)
    # What keeps a model from being batched keeps it from being read in chunks too.
    is_serial = why_serial(skeleton) is not None
    chunk = length if is_serial else min(settings.prefill_chunk, length)
    rows = 1 if is_serial else settings.max_batch_size
    footprint = measure_footprint(
        skeleton,
        max_model_len=length,
        prefill_chunk=chunk,
        max_batch_size=rows,
        stored_dtype=checkpoint.dtype,
        stored_kind=checkpoint.kind,
    )
    wishes = _wishes(settings, checkpoint, footprint, resources, max_batch_size=rows)
    placement = plan(footprint, resources, wishes)
    return Prepared(
        checkpoint,
        skeleton,
        footprint,
        placement,
        resources.processors,
        chunk,
        _offload(settings, footprint, resources),
    )


def bring_up(
    settings: Settings,
    prepared: Prepared,
    progress: Progress,
    on_broken: Callable[[EngineBroken], None] | None = None,
) -> Started:
    """Returns the model, loaded and warm.

    Args:
        settings: The settings.
        prepared: What was decided.
        progress: Is told how far loading is.
        on_broken: Is told, in another thread, when the model has failed for good.

    Raises:
        CheckpointError: The files lack something.
        HubUnreachable: The weights have to come from the hub, which cannot be reached.
        LoadFailed: Reading failed.
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
    held = read_own_anonymous() - before
    audit.compare(prepared.placement, held=held, buffers=loaded.buffer_bytes)
    return Started(task, loaded)


def _open(
    settings: Settings,
    prepared: Prepared,
    loaded: Loaded,
    metrics: WeightMetrics,
    on_broken: Callable[[EngineBroken], None] | None,
) -> TextGeneration:
    opened = open_engine(
        loaded.model,
        prepared.placement,
        prefill_chunk=prepared.chunk,
        max_sequences=settings.max_batch_size,
        threads=prepared.threads,
        model_name=settings.model_name,
        weights=metrics,
        known=loaded.known,
        on_broken=on_broken,
    )
    return open_task(
        loaded.model,
        prepared.checkpoint.path,
        opened,
        max_model_len=prepared.footprint.max_model_len,
        max_length=settings.max_length,
        trust_remote_code=settings.trust_remote_code,
    )


def inherited_notes(settings: Settings) -> tuple[str, ...]:
    """Returns a sentence for each of the predecessor's keys that no longer changes anything."""
    notes = []
    if settings.low_cpu_mem_usage is not None:
        notes.append(
            "low_cpu_mem_usage is no longer needed: a model is always built without its weights."
        )
    if settings.offload_state_dict is not None:
        notes.append(
            "offload_state_dict is no longer needed: weights are never gathered in memory."
        )
    return tuple(notes)


def _serving_dtype(settings: Settings, checkpoint: Checkpoint) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    declared = getattr(checkpoint.config, "dtype", None)
    if declared is not None:
        return str(declared).removeprefix("torch.")
    return checkpoint.dtype or "float32"


def _max_model_len(settings: Settings, checkpoint: Checkpoint) -> int:
    known = known_positions(checkpoint.config)
    length = settings.max_model_len
    if length is not None and known is not None and length > known:
        raise ConfigurationError(
            f"max_model_len {length} is longer than the {known} positions that this model can be "
            "served with."
        )
    if length is None and settings.max_length is not None:
        length = min(2 * settings.max_length, known or 2 * settings.max_length)
    return length or context_length(checkpoint.config)


def _wishes(
    settings: Settings,
    checkpoint: Checkpoint,
    footprint: Footprint,
    resources: PodResources,
    *,
    max_batch_size: int,
) -> Wishes:
    return Wishes(
        device_map=settings.device_map,
        max_memory=settings.max_memory or {},
        max_concurrency=settings.max_concurrency,
        max_batch_size=max_batch_size,
        headroom=settings.memory_headroom,
        reserve=settings.memory_reserve,
        disk=_disk(settings, checkpoint, footprint, resources),
    )


def _offload(settings: Settings, footprint: Footprint, resources: PodResources) -> Offload:
    volume = resources.volume
    return Offload(
        folder=settings.offload_folder,
        free=volume.available if volume is not None and volume.writable else 0,
        store=settings.offload_store,
        verify=settings.verify_store,
        rewritten=footprint.rewritten,
        cast=footprint.cast,
    )


def _disk(
    settings: Settings, checkpoint: Checkpoint, footprint: Footprint, resources: PodResources
) -> int | None:
    """Bytes of the disk tier: bounded where blocks must be written anew, or a size was stated."""
    volume = resources.volume
    if volume is not None and volume.stated:
        return volume.available
    if not footprint.rewritten and settings.offload_store != "always":
        return None
    if volume is None or not volume.writable or settings.offload_folder is None:
        return 0
    name = folder_name(checkpoint, footprint.dtype)
    # What an earlier start wrote is used again, or replaced.
    store = store_file(settings.offload_folder, name)
    there = sum(f.stat().st_size for f in (store, partial_of(store)) if f.exists())
    return volume.available + there + count_usage(settings.offload_folder / name).used
