"""A start from top to bottom: settings, checkpoint, footprint, placement, weights, engine.

This is the one place that composes the floors below it. `predictor plan` stops after the placement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from predictor import fetching
from predictor.adapters import open_adapters, with_adapters
from predictor.checkpoint.checkpoint import Checkpoint, fetch_weights
from predictor.checkpoint.task_detection import GENERATING
from predictor.constraints import (
    largest_batch,
    largest_chunk,
    reason_against_batches,
    sequence_lengths,
    serving_dtype,
    serving_notes,
    with_served_angles,
)
from predictor.draft_model import load_draft, measure_draft
from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.encoding.postprocess import postprocess_for
from predictor.engine.encoding.warmup import open_encoder_engine
from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.draft_model import DraftModel
from predictor.engine.generation.draft_support import DraftOptions
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.warmup import Chunks, open_engine
from predictor.errors import EngineBroken
from predictor.fetching import open_checkpoint as open_checkpoint
from predictor.heartbeat import Timeouts
from predictor.measuring import measure_model
from predictor.metrics import EngineMetrics, Labelled, WeightMetrics, labelled
from predictor.placing import place
from predictor.pod.memory import read_own_anonymous
from predictor.pod.resources import PodResources
from predictor.prepared import Measured, Prepared
from predictor.private.transformers import check_models
from predictor.profiling.footprint import build_on_meta, with_logits
from predictor.profiling.text_model import text_notes
from predictor.settings import Settings
from predictor.tasks.generation_config import check_generation_config, end_tokens
from predictor.tasks.generation_overrides import check_overrides
from predictor.tasks.model_facts import ModelFacts, encoder_facts, generation_facts
from predictor.tasks.sentence_layout import read_layout
from predictor.verification.model import verify_model
from predictor.weights import audit
from predictor.weights.loaded import Loaded
from predictor.weights.loader import load
from predictor.weights.progress import Progress


@dataclass(frozen=True, slots=True)
class Started:
    """A model that is loaded and warm.

    Attributes:
        engine: The engine, which runs.
        facts: The facts that its task needs.
        weights: The loaded weights.
        metrics: The metrics of their streaming.
    """

    engine: Engine | EncoderEngine
    facts: ModelFacts
    weights: Loaded
    metrics: WeightMetrics


@dataclass(frozen=True, slots=True)
class EngineHooks:
    """What an engine calls, and where it counts.

    Attributes:
        on_broken: Called in the model thread, last of all, if the model fails permanently.
        after_step: Called in the model thread after each step.
        child: Returns the children of metrics.
    """

    on_broken: Callable[[EngineBroken], None] | None = None
    after_step: Callable[[], None] | None = None
    child: Labelled = labelled


def prepare(settings: Settings, checkpoint: Checkpoint, resources: PodResources) -> Prepared:
    """Decide the placement of a model; of its weights, only those that should be equal are read.

    Raises:
        DoesNotFit: No placement fits.
        ConfigurationError: See `measure`.
    """
    return place(settings, measure(settings, checkpoint), resources)


def measure(settings: Settings, checkpoint: Checkpoint, *, samples: bool = False) -> Measured:
    """Measure the memory that a model needs, on whatever device; `samples`: see `verify_model`.

    Raises:
        CheckpointError: The files are not those of the model, or are damaged.
        ModelUnusable: The model cannot compute a token.
        ConfigurationError: A setting is invalid here, or a library lacks what is used of it.
    """
    check_models()
    original, checkpoint = checkpoint, with_served_angles(settings, checkpoint)
    dtype, task = serving_dtype(settings, checkpoint), checkpoint.task
    if task in GENERATING:
        check_generation_config(checkpoint.path, has_encoder=checkpoint.config.is_encoder_decoder)
        check_overrides(settings.override_generation_config)
    skeleton = build_on_meta(
        checkpoint.config, dtype, task, trust_remote_code=settings.trust_remote_code
    )
    checkpoint, packed = verify_model(skeleton, checkpoint, settings.weights_dtype, samples=samples)
    lengths = sequence_lengths(settings, checkpoint, skeleton)
    adapters = open_adapters(settings, skeleton, task)
    unbatchable = reason_against_batches(task, skeleton)
    chunk, rows = largest_batch(settings, task, unbatchable, lengths.total)
    largest = 0 if unbatchable is not None else largest_chunk(settings)
    sizes = chunk, rows, largest
    footprint = measure_model(skeleton, checkpoint, packed, lengths, sizes, unbatchable)
    footprint = with_logits(footprint, skeleton, settings.draft_positions(task) - rows)
    beside: dict[str, Any] = {"lora_memory": settings.lora_memory, "model": skeleton}
    footprint = with_adapters(footprint, adapters, max(chunk, rows), **beside)
    draft = measure_draft(settings, checkpoint, footprint, unbatchable, chunk=chunk, rows=rows)
    if draft is not None:
        footprint = footprint.with_draft_model(draft.footprint)
    limits = serving_notes(original, skeleton, unbatchable, lengths)
    notes = (*text_notes(skeleton), *packed.notes, *limits)
    files = checkpoint, skeleton, packed, adapters
    return Measured(*files, footprint, chunk, rows, lengths, notes, draft)


def bring_up(
    settings: Settings, prepared: Prepared, progress: Progress, hooks: EngineHooks = EngineHooks()
) -> Started:
    """Load a model and warm it up.

    Args:
        settings: The settings.
        prepared: The model and its placement.
        progress: Reports the progress of loading.
        hooks: What the engine calls.

    Raises:
        CheckpointError: The checkpoint is incomplete.
        HubUnreachable: The weights are on the hub, which cannot be reached.
        LoadFailed: A read failed.
    """
    prepared = _fetched(settings, prepared)
    fetching.begin(settings, prepared, progress)
    gpus = audit.wake_gpus(prepared.placement)
    before = read_own_anonymous()
    metrics = WeightMetrics(settings.model_name, child=hooks.child)
    loaded = _load(settings, prepared, progress, metrics)
    try:
        fetching.settle(prepared, has_store=loaded.resolver.store is not None)
        # With a progress of its own: blocks of the model may still arrive.
        draft = load_draft(settings, prepared.draft, prepared.placement, loaded.model, Progress())
        # Before the first forward pass, which loads kernels on a GPU: they take main memory too.
        held = read_own_anonymous() - before + loaded.filling.bytes_left
        audit.compare(prepared.placement, held=held, buffers=loaded.buffer_bytes)
        audit.compare_gpus(
            prepared.placement,
            before=gpus,
            after=audit.read_gpus(prepared.placement),
            slots=loaded.device_bytes,
        )
        if settings.fill_before_ready:
            loaded.filling.finish()
        engine, facts = _open(settings, prepared, loaded, metrics, hooks, draft)
    except BaseException:
        loaded.release()
        raise
    loaded.serve()
    return Started(engine, facts, loaded, metrics)


def _fetched(settings: Settings, prepared: Prepared) -> Prepared:
    """Fetch the weights; the headers of their files say how layers really are packed."""
    checkpoint = fetch_weights(prepared.checkpoint)
    if checkpoint is prepared.checkpoint:
        return prepared
    skeleton = build_on_meta(
        checkpoint.config,
        prepared.footprint.dtype,
        checkpoint.task,
        trust_remote_code=settings.trust_remote_code,
    )
    checkpoint, packed = verify_model(skeleton, checkpoint, settings.weights_dtype)
    return replace(prepared, checkpoint=checkpoint, skeleton=skeleton, packed=packed)


def _load(
    settings: Settings, prepared: Prepared, progress: Progress, metrics: WeightMetrics
) -> Loaded:
    return load(
        prepared.checkpoint,
        prepared.placement,
        prepared.offload,
        trust_remote_code=settings.trust_remote_code,
        progress=progress,
        skeleton=prepared.skeleton,
        packed=prepared.packed,
        metrics=metrics,
        pinned_fraction=settings.pinned_memory_fraction,
    )


def _open(
    settings: Settings,
    prepared: Prepared,
    loaded: Loaded,
    metrics: WeightMetrics,
    hooks: EngineHooks,
    draft_model: DraftModel | None,
) -> tuple[Engine | EncoderEngine, ModelFacts]:
    timeouts = Timeouts(settings.stall_timeout, settings.hang_timeout)
    common: dict[str, Any] = {
        "heartbeat": loaded.heartbeat(timeouts),
        "threads": prepared.threads,
        "metrics": EngineMetrics(settings.model_name, metrics, child=hooks.child),
        "warmup_cache": loaded.warmup_cache,
        "on_broken": hooks.on_broken,
        "after_step": hooks.after_step,
    }
    path, task = prepared.checkpoint.path, prepared.checkpoint.task
    lengths, placement = prepared.lengths, prepared.placement
    if task in GENERATING:
        most, lookup = settings.most_draft_tokens(), settings.prompt_lookup_num_tokens
        drafts = DraftOptions(most, lookup, draft_model)
        handle = open_engine(
            loaded.model,
            placement,
            chunks=Chunks(settings.prefill_chunk, prepared.chunk, settings.prefill_target),
            max_sequences=settings.max_batch_size,
            eos_token_ids=end_tokens(loaded.model.generation_config, path),
            prefix_cache=settings.prefix_cache,
            drafts=drafts,
            adapters=LoadedAdapters(loaded.model, prepared.adapters, placement.execution_device),
            **common,
        )
        facts = generation_facts(
            loaded.model,
            task=task,
            path=path,
            lengths=lengths,
            vocabulary=handle.vocabulary,
            max_length=settings.max_length,
            overrides=settings.override_generation_config,
        )
        return handle.engine, facts
    facts = encoder_facts(loaded.model.config, task=task, path=path, max_model_len=lengths.source)
    limits = BatchLimits(prepared.chunk, settings.max_batch_size, delay=settings.max_batch_delay)
    postprocess = postprocess_for(task, pooling=read_layout(path).pooling)
    opened = open_encoder_engine(loaded.model, placement, postprocess, limits=limits, **common)
    return opened.engine, replace(facts, unbatched=opened.reason)
