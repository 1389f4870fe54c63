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
from predictor.placement.footprint import build_on_meta, measure_footprint
from predictor.placement.plan import Placement, Wishes
from predictor.placement.planner import plan
from predictor.placement.units import Footprint
from predictor.pod.resources import PodResources
from predictor.pod.usage import count_usage
from predictor.settings import Settings
from predictor.tasks.generation import TextGeneration
from predictor.tasks.loading import open_task
from predictor.weights.checkpoint import (
    Checkpoint,
    context_length,
    fetch_weights,
    known_positions,
    open_directory,
    open_hub,
)
from predictor.weights.loader import load
from predictor.weights.progress import Progress
from predictor.weights.rewritten import folder_name


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
    """

    checkpoint: Checkpoint
    skeleton: Any
    footprint: Footprint
    placement: Placement
    threads: int | None
    chunk: int


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
    wishes = _wishes(settings, checkpoint, footprint, resources)
    placement = plan(footprint, resources, replace(wishes, max_batch_size=rows))
    return Prepared(checkpoint, skeleton, footprint, placement, resources.processors, chunk)


def bring_up(
    settings: Settings,
    prepared: Prepared,
    progress: Progress,
    on_broken: Callable[[EngineBroken], None] | None = None,
) -> TextGeneration:
    """Returns the task, loaded and warm.

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
    checkpoint = fetch_weights(prepared.checkpoint)
    model = load(
        checkpoint,
        prepared.placement,
        offload_folder=settings.offload_folder,
        rewritten=prepared.footprint.rewritten,
        trust_remote_code=settings.trust_remote_code,
        progress=progress,
        skeleton=prepared.skeleton,
    )
    opened = open_engine(
        model,
        prepared.placement,
        prefill_chunk=prepared.chunk,
        max_sequences=settings.max_batch_size,
        threads=prepared.threads,
        model_name=settings.model_name,
        on_broken=on_broken,
    )
    return open_task(
        model,
        checkpoint.path,
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
    settings: Settings, checkpoint: Checkpoint, footprint: Footprint, resources: PodResources
) -> Wishes:
    return Wishes(
        device_map=settings.device_map,
        max_memory=settings.max_memory or {},
        max_concurrency=settings.max_concurrency,
        headroom=settings.memory_headroom,
        reserve=settings.memory_reserve,
        disk=_disk(settings, checkpoint, footprint, resources),
    )


def _disk(
    settings: Settings, checkpoint: Checkpoint, footprint: Footprint, resources: PodResources
) -> int | None:
    """Bytes of the disk tier: bounded where blocks must be written anew, or a size was stated."""
    volume = resources.volume
    if volume is not None and volume.stated:
        return volume.available
    if not footprint.rewritten:
        return None
    if volume is None or not volume.writable or settings.offload_folder is None:
        return 0
    written = settings.offload_folder / folder_name(checkpoint, footprint.dtype)
    return volume.available + count_usage(written).used  # an earlier start's files are replaced
