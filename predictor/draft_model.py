"""The draft model that the settings name: its files, its footprint, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from predictor.checkpoint.checkpoint import Checkpoint, fetch_weights, open_directory, open_hub
from predictor.checkpoint.hub import split_reference
from predictor.checkpoint.positions import max_positions
from predictor.constraints import serving_dtype
from predictor.engine.generation.batchability import count_vocabulary
from predictor.engine.generation.cache_kinds import unbatchable_reason
from predictor.engine.generation.draft_model import DraftModel
from predictor.engine.generation.runner import BatchRunner
from predictor.errors import ConfigurationError
from predictor.linear.layers import PackedLayers
from predictor.metrics import WeightMetrics
from predictor.placement.plan import Placement, Tier
from predictor.placement.units import Footprint
from predictor.private.cache_layers import cache_layers
from predictor.profiling.footprint import build_on_meta, measure_footprint
from predictor.sentences import quote
from predictor.settings import Settings
from predictor.tasks.loading import open_tokenizer
from predictor.verification.model import verify_model
from predictor.weights.loader import load
from predictor.weights.offload_config import OffloadConfig
from predictor.weights.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TASK = "text_generation"
_STATE = "it keeps a state, which cannot go back to an earlier token"


@dataclass(frozen=True, slots=True)
class MeasuredDraft:
    """A draft model whose memory is measured.

    Attributes:
        checkpoint: Its files.
        skeleton: The model on the meta device.
        packed: Its layers that stay packed.
        footprint: The memory that it needs.
        chunk: Most tokens of one forward pass, for which its activations are planned.
        max_length: Tokens of the longest sequence that it can continue.
    """

    checkpoint: Checkpoint
    skeleton: Any
    packed: PackedLayers
    footprint: Footprint
    chunk: int
    max_length: int


def measure_draft(
    settings: Settings,
    checkpoint: Checkpoint,
    footprint: Footprint,
    unbatchable: str | None,
    *,
    chunk: int,
    rows: int,
) -> MeasuredDraft | None:
    """Return the measured draft model; None if the settings name none.

    Args:
        settings: The settings.
        checkpoint: The files of the model that it drafts for.
        footprint: The footprint of that model.
        unbatchable: Why that model generates one sequence at a time; None if it does not.
        chunk: Most tokens of a forward pass.
        rows: Most sequences of a forward pass.

    Raises:
        CheckpointError: The draft model's files are damaged or missing.
        ConfigurationError: It cannot draft, or not for this model.
        HubUnreachable: It is on the hub, which cannot be reached.
    """
    if settings.draft_model_dir is None:
        return None
    _check_verifies(checkpoint.task, footprint, unbatchable)
    draft = _open(settings, settings.draft_model_dir)
    _check_tokenizers(settings, checkpoint.path, draft.path)
    skeleton = build_on_meta(
        *(draft.config, serving_dtype(settings, draft), _TASK),
        trust_remote_code=settings.trust_remote_code,
    )
    draft, packed = verify_model(skeleton, draft, "auto")
    length = min(footprint.max_model_len, max_positions(draft.config) or footprint.max_model_len)
    own = measure_footprint(
        skeleton,
        max_model_len=length,
        prefill_chunk=min(chunk, length),
        max_batch_size=rows,
        stored_dtype=draft.dtype,
        stored_kind=draft.kind,
        packed=packed,
    )
    _check_cache(skeleton, own)
    return MeasuredDraft(draft, skeleton, packed, own, min(chunk, length), length)


def load_draft(
    settings: Settings,
    draft: MeasuredDraft | None,
    placement: Placement,
    model: PreTrainedModel,
    progress: Progress,
) -> DraftModel | None:
    """Load a draft model onto the device that executes the model that it drafts for.

    Args:
        settings: The settings.
        draft: The draft model; None if there is none.
        placement: The placement of the model that it drafts for.
        model: That model.
        progress: Reports the progress of loading.

    Raises:
        CheckpointError: The checkpoint is incomplete.
        HubUnreachable: The weights are on the hub, which cannot be reached.
        LoadFailed: A read failed.
    """
    if draft is None:
        return None
    loaded = load(
        fetch_weights(draft.checkpoint),
        _resident(draft, placement),
        OffloadConfig(needs_conversion=draft.footprint.needs_conversion),
        trust_remote_code=settings.trust_remote_code,
        progress=progress,
        skeleton=draft.skeleton,
        packed=draft.packed,
        metrics=WeightMetrics(settings.model_name),  # nothing is streamed
        pinned_fraction=settings.pinned_memory_fraction,
    )
    loaded.filling.finish()  # it is small, and is timed before the first request
    own = int(loaded.model.config.get_text_config().vocab_size)
    runner = BatchRunner(
        loaded.model,
        device=torch.device(placement.execution_device),
        layers=cache_layers(loaded.model),
        pages=placement.kv_tokens,
        max_length=draft.max_length,
    )
    return DraftModel(
        runner,
        tokens=settings.draft_model_num_tokens,
        chunk=draft.chunk,
        max_length=draft.max_length,
        vocabulary=min(own, count_vocabulary(model)),
    )


def _open(settings: Settings, source: str) -> Checkpoint:
    """Return the checkpoint in a directory or, if there is no such one, on the hub."""
    rules: dict[str, Any] = {
        "task": _TASK,
        "allow_pickle": settings.allow_pickle,
        "trust_remote_code": settings.trust_remote_code,
    }
    reference = split_reference(source)
    if reference is None:
        return open_directory(Path(source), **rules)
    return open_hub(*reference, **rules)


def _check_verifies(task: str, footprint: Footprint, reason: str | None) -> None:
    """Check that a model, which is served one sequence at a time for a reason, verifies drafts."""
    if task != _TASK:
        reason = f"its task is {task}"
    elif footprint.kv_fixed or not (footprint.kv_per_token or footprint.kv_windowed):
        reason = reason or _STATE
    if reason is not None:
        raise ConfigurationError(
            f"draft_model_dir: no drafts can be verified for this model: {reason}; leave it out."
        )


def _check_tokenizers(settings: Settings, own: Path, path: Path) -> None:
    """Check that two models have the same tokens."""
    vocabularies = [
        open_tokenizer(each, trust_remote_code=settings.trust_remote_code).get_vocab()
        for each in (own, path)
    ]
    if vocabularies[0] == vocabularies[1]:
        return
    differing = sorted(set(vocabularies[0].items()) ^ set(vocabularies[1].items()))
    token, number = differing[0]
    raise ConfigurationError(
        f"draft_model_dir: the tokenizer of {path} is not that of the model: they differ in "
        f"{len(differing)} entries, such as {quote(token)} ({number}). A draft model needs the "
        "same tokenizer; take a small model of the same family, or leave it out."
    )


def _check_cache(skeleton: PreTrainedModel, footprint: Footprint) -> None:
    """Check that a model keeps keys and values of tokens, which can be dropped, and no more."""
    reason = unbatchable_reason(skeleton)
    if reason is None and (footprint.kv_fixed or not footprint.probed):
        reason = _STATE
    if reason is not None:
        raise ConfigurationError(
            f"draft_model_dir: a {footprint.architecture} cannot draft: {reason}."
        )


def _resident(draft: MeasuredDraft, placement: Placement) -> Placement:
    """Return the placement of a draft model: all of it where the model executes."""
    device, footprint = placement.execution_device, draft.footprint
    weights = sum(unit.weights + unit.stays for unit in footprint.units)
    names = dict.fromkeys((str(device), "cpu", "disk"))
    return Placement(
        architecture=footprint.architecture,
        dtype=footprint.dtype,
        quantization=footprint.quantization,
        weights_layout=footprint.weights_layout,
        device_map={name: device for unit in footprint.units for name in unit.names},
        tiers=tuple(
            Tier(name, None, None, weights=weights if name == str(device) else 0) for name in names
        ),
        execution_device=device,
        max_model_len=draft.max_length,
        kv_tokens=placement.kv_tokens,
        limited_by="nothing: every weight is where it executes",
    )
