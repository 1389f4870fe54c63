"""Turn settings into placement options and an offload config, for one model and one pod."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from predictor.checkpoint.checkpoint import Checkpoint, declared_dtype
from predictor.checkpoint.lengths import (
    Lengths,
    default_length,
    reply_positions,
    source_positions,
)
from predictor.checkpoint.positions import (
    context_length,
    equal_positions,
    max_positions,
    with_equal_angles,
)
from predictor.checkpoint.task_detection import GENERATING
from predictor.checkpoint.vocabulary import vocabulary_of
from predictor.engine.generation.cache_kinds import unbatchable_reason
from predictor.engine.generation.decoder_padding import reason_against_padding
from predictor.errors import ConfigurationError
from predictor.placement.plan import PlacementOptions
from predictor.placement.units import Footprint
from predictor.pod.resources import MEMORY_FILESYSTEMS, PodResources
from predictor.pod.usage import count_usage
from predictor.profiling.encoder_probe import count_positions
from predictor.profiling.module_state import keeps_state_in_modules
from predictor.reserve import planned_reserve
from predictor.settings import Settings
from predictor.tasks.sentence_layout import read_layout
from predictor.weights.converted import conversions, folder_name
from predictor.weights.offload_config import OffloadConfig
from predictor.weights.store.folder import store_file
from predictor.weights.store.writer import partial_file

_UNBOUNDED = 2**31

_LARGEST_CHUNK = 8192
"""Prompt tokens of a forward pass, if the settings bound them in no way."""

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def inherited_notes(settings: Settings) -> tuple[str, ...]:
    """Return a sentence for each of the predecessor's keys that no longer has an effect."""
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


def serving_dtype(settings: Settings, checkpoint: Checkpoint) -> str:
    """Return torch's name of the serving dtype."""
    if settings.dtype != "auto":
        return settings.dtype
    return declared_dtype(checkpoint.config) or checkpoint.dtype or "float32"


def with_served_angles(settings: Settings, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint of a model that rotates sequences of all served lengths equally.

    Only a length that the settings demand may be beyond those of one rotation.
    """
    if checkpoint.task == "text2text_generation":
        return checkpoint
    length = settings.max_model_len or 2 * (settings.max_length or 0)
    length = min(length, max_positions(checkpoint.config) or length)
    return replace(checkpoint, config=with_equal_angles(checkpoint.config, length))


def sequence_lengths(
    settings: Settings, checkpoint: Checkpoint, skeleton: PreTrainedModel
) -> Lengths:
    """Return the most tokens of a sequence; a source and its reply have lengths of their own.

    Raises:
        ConfigurationError: The settings demand more than the positions of the model.
    """
    if checkpoint.task != "text2text_generation":
        return Lengths(_max_model_len(settings, checkpoint, skeleton))
    config, length = checkpoint.config, settings.max_model_len
    parts = (source_positions(config), reply_positions(config))
    bounded = [positions for positions in parts if positions is not None]
    if len(bounded) == len(parts):
        _check_length(length, max(bounded))
    if length is None and settings.max_length is not None:
        length = 2 * settings.max_length
    source, reply = (
        min(length or default_length(config, positions), positions or _UNBOUNDED)
        for positions in parts
    )
    return Lengths(source, reply)


def _check_length(length: int | None, positions: int | None) -> None:
    if length is not None and positions is not None and length > positions:
        raise ConfigurationError(
            f"max_model_len {length} is longer than the {positions} positions that this model can "
            "be served with."
        )


def _max_model_len(settings: Settings, checkpoint: Checkpoint, skeleton: PreTrainedModel) -> int:
    """Return the most tokens that a text, or a prompt and its reply, may have.

    Raises:
        ConfigurationError: The settings demand more than the positions of the model.
    """
    positions = max_positions(checkpoint.config)
    if checkpoint.task not in GENERATING:
        positions = count_positions(skeleton) or positions
    length = settings.max_model_len
    _check_length(length, positions)
    if length is None and settings.max_length is not None:
        length = min(2 * settings.max_length, positions or 2 * settings.max_length)
    default = context_length(checkpoint.config)
    if checkpoint.task == "text_embedding":
        default = min(default, read_layout(checkpoint.path).max_length or default)
    return length or min(default, positions or default)


def reason_against_batches(task: str, skeleton: PreTrainedModel) -> str | None:
    """Return why a model generates one sequence at a time; None if it does not, or is an encoder.

    Args:
        task: The task of the model.
        skeleton: The model on the meta device.
    """
    if task != "text_generation":
        return None
    reason = unbatchable_reason(skeleton)
    if reason is None and keeps_state_in_modules(skeleton):
        return "it keeps a state in its modules"
    return reason


def largest_batch(
    settings: Settings, task: str, unbatchable: str | None, length: int
) -> tuple[int, int]:
    """Return the most tokens and the most sequences of one forward pass.

    Args:
        settings: The settings.
        task: The task of the model.
        unbatchable: Why it generates one sequence at a time; None if it does not.
        length: Most tokens of a sequence.
    """
    if task not in GENERATING:
        return max(settings.max_batch_tokens, length), settings.max_batch_size
    if task == "text2text_generation":
        return max(settings.prefill_chunk, length), settings.max_batch_size
    # A model that cannot be batched cannot prefill in chunks either, for the same reasons.
    if unbatchable is not None:
        return length, 1
    return min(settings.prefill_chunk, length), settings.max_batch_size


def largest_chunk(settings: Settings) -> int:
    """Return the most prompt tokens of a forward pass of an offloaded model."""
    if settings.max_prefill_chunk is not None:
        return settings.max_prefill_chunk
    return 0 if "prefill_chunk" in settings.model_fields_set else _LARGEST_CHUNK


def serving_notes(
    checkpoint: Checkpoint, skeleton: PreTrainedModel, unbatchable: str | None, lengths: Lengths
) -> tuple[str, ...]:
    """Return sentences about what limits how the model is served.

    Args:
        checkpoint: The checkpoint as it is stored.
        skeleton: The model on the meta device.
        unbatchable: Why it generates one sequence at a time; None if it does not.
        lengths: The most tokens of a sequence.
    """
    notes = []
    if unbatchable is not None:
        notes.append(f"Requests are answered one at a time: {unbatchable}.")
    has_encoder = checkpoint.task == "text2text_generation"
    apart = reason_against_padding(skeleton) if has_encoder else None
    if apart is not None:
        notes.append(f"Sources that come later run in forward passes of their own: {apart}.")
    positions = equal_positions(checkpoint.config)
    if positions is not None and lengths.reply is None and lengths.source > positions:
        notes.append(
            f"max_model_len {lengths.source} is beyond {positions} positions, from where the RoPE "
            "of this model has other angles, so sequences of all lengths get those other angles."
        )
    return tuple(notes)


def placement_options(
    settings: Settings,
    checkpoint: Checkpoint,
    resources: PodResources,
    offload: OffloadConfig,
    *,
    max_batch_size: int,
    batch_concurrency: int = 0,
) -> PlacementOptions:
    """Return the placement options; `max_batch_size` is the largest batch of the model."""
    return PlacementOptions(
        device_map=settings.device_map,
        max_memory=settings.max_memory or {},
        max_concurrency=settings.max_concurrency if checkpoint.task in GENERATING else 1,
        max_batch_size=max_batch_size,
        batch_concurrency=min(batch_concurrency, max_batch_size),
        headroom=settings.memory_headroom,
        reserve=planned_reserve(settings, vocabulary=_vocabulary(checkpoint)),
        disk=_disk(offload, resources),
        in_place=offload.store != "always" and not _is_stated(resources),
        expert_slots=settings.expert_slots == "auto",
    )


def _vocabulary(checkpoint: Checkpoint) -> int:
    """Return the number of token ids of a model whose replies may follow grammars; 0 for others."""
    return vocabulary_of(checkpoint.config) if checkpoint.task in GENERATING else 0


def offload_of(
    settings: Settings, checkpoint: Checkpoint, footprint: Footprint, resources: PodResources
) -> OffloadConfig:
    """Return how offloaded blocks are stored on the offload volume."""
    volume = resources.volume
    return OffloadConfig(
        folder=settings.offload_folder,
        free=volume.available if volume is not None and volume.writable else 0,
        existing=_existing(settings, checkpoint, footprint),
        store=settings.offload_store,
        verify=settings.verify_store,
        needs_conversion=footprint.needs_conversion,
        needs_cast=footprint.needs_cast,
        is_disk=volume is None or volume.filesystem not in MEMORY_FILESYSTEMS,
    )


def _is_stated(resources: PodResources) -> bool:
    return resources.volume is not None and resources.volume.stated


def _disk(offload: OffloadConfig, resources: PodResources) -> int | None:
    """Return the bytes of the disk tier; None if blocks are read in place from the checkpoint."""
    volume = resources.volume
    if volume is not None and volume.stated:
        return volume.available
    if not offload.needs_conversion and offload.store != "always":
        return None
    if volume is None or not volume.writable or offload.folder is None:
        return 0
    return offload.free + offload.existing


def _existing(settings: Settings, checkpoint: Checkpoint, footprint: Footprint) -> int:
    """Return the bytes of the model's files of earlier starts, which are used or replaced."""
    if settings.offload_folder is None:
        return 0
    name = folder_name(checkpoint, footprint.weights_layout)
    store = store_file(settings.offload_folder, name)
    files = sum(file.stat().st_size for file in (store, partial_file(store)) if file.exists())
    converted = conversions(settings.offload_folder, name)
    return files + sum(count_usage(folder).used for folder in converted)
