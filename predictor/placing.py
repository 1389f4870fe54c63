"""Decides the placement of a model that is measured: settings become options of the planner."""

from __future__ import annotations

from dataclasses import replace

from predictor.constraints import offload_of, placement_options
from predictor.placement.planner import plan
from predictor.pod.resources import PodResources
from predictor.prepared import Measured, Prepared
from predictor.settings import Settings


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
    options = placement_options(
        settings,
        model.checkpoint,
        footprint,
        resources,
        max_batch_size=model.rows,
        batch_concurrency=-(-batch_tokens // model.lengths.total),
    )
    placement = plan(footprint, resources, options)
    return Prepared(
        model.checkpoint,
        model.skeleton,
        model.packed,
        model.adapters,
        footprint,
        replace(placement, notes=placement.notes + model.notes),
        resources.processors,
        max(model.chunk, placement.prefill_chunk),
        offload_of(settings, footprint, resources),
        model.lengths,
        model.draft,
    )
