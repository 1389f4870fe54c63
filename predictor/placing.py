"""Decides the placement of a model that is measured: settings become options of the planner."""

from __future__ import annotations

from dataclasses import replace

from predictor.constraints import offload_of, placement_options
from predictor.placement.plan import Placement
from predictor.placement.planner import plan
from predictor.pod.resources import PodResources
from predictor.prepared import Measured, Prepared
from predictor.quantity import format_bytes
from predictor.settings import Settings
from predictor.weights.offload_config import OffloadConfig
from predictor.weights.remote.volume import volume_demand


def place(
    settings: Settings, model: Measured, resources: PodResources, batch_tokens: int = 0
) -> Prepared:
    """Decide the placement of a measured model.

    Args:
        settings: The settings.
        model: The model.
        resources: What the pod owns.
        batch_tokens: Tokens of KV cache that a batch of bulk work would fill; 0 without one.

    Raises:
        DoesNotFit: No placement fits.
        ConfigurationError: A setting is invalid here.
    """
    footprint = model.footprint
    offload = offload_of(settings, model.checkpoint, footprint, resources)
    options = placement_options(
        settings,
        model.checkpoint,
        resources,
        offload,
        max_batch_size=model.rows,
        batch_concurrency=-(-batch_tokens // model.lengths.total),
    )
    placement = plan(footprint, resources, options)
    notes = (*placement.notes, *model.notes, *_fetch_notes(model, placement, offload))
    return Prepared(
        model.checkpoint,
        model.skeleton,
        model.packed,
        model.adapters,
        footprint,
        replace(placement, notes=notes),
        resources.processors,
        max(model.chunk, placement.prefill_chunk),
        offload,
        model.lengths,
        model.draft,
    )


def _fetch_notes(model: Measured, placement: Placement, offload: OffloadConfig) -> tuple[str, ...]:
    """Return a sentence about the offload volume, if weights are fetched while they are loaded."""
    remote = model.checkpoint.remote
    if remote is None:
        return ()
    demand = volume_demand(remote, model.footprint, placement, offload)
    return (
        f"Weights are fetched, {format_bytes(remote.total_bytes)} in files of up to "
        f"{format_bytes(remote.largest)}: the offload volume needs at least "
        f"{format_bytes(demand.least)} meanwhile, and up to "
        f"{format_bytes(demand.most)} for restarts that fetch nothing.",
    )
