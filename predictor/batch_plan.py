"""Decides the placement of a model for bulk work: for the largest batch that there is room for."""

from __future__ import annotations

from predictor import startup
from predictor.batch_goal import BatchGoal
from predictor.checkpoint.checkpoint import Checkpoint
from predictor.errors import DoesNotFit
from predictor.placing import place
from predictor.pod.resources import PodResources
from predictor.prepared import Prepared
from predictor.settings import Settings


def prepare_batch(
    settings: Settings, checkpoint: Checkpoint, resources: PodResources, goal: BatchGoal
) -> tuple[Settings, Prepared]:
    """Return the placement for bulk work, and the settings with the size of a batch.

    Raises the errors of `startup.prepare`.
    """
    *larger, smallest = goal.sizes
    for size in larger:
        chosen = settings.model_copy(update={"max_batch_size": size})
        try:
            return chosen, _prepare(chosen, checkpoint, resources, size * goal.tokens)
        except DoesNotFit:
            continue
    chosen = settings.model_copy(update={"max_batch_size": smallest})
    return chosen, _prepare(chosen, checkpoint, resources, smallest * goal.tokens)


def _prepare(
    settings: Settings, checkpoint: Checkpoint, resources: PodResources, batch_tokens: int
) -> Prepared:
    return place(settings, startup.measure(settings, checkpoint), resources, batch_tokens)
