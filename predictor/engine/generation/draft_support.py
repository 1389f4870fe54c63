"""Whether drafts can be verified for a model, by its placement and by a test."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.batchability import is_far
from predictor.engine.generation.draft_model import DraftModel
from predictor.engine.generation.forward_passes import DraftModelCost, SchedulerLimits
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.engine.timing import PassCost
from predictor.engine.warmup import check_once
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_TIMED_ROWS = 8
"""Rows of the forward pass that shows what a further row costs the draft model."""

_TRIAL = (0, 1, 0, 1)
"""Tokens of the forward pass that tests a model: a known one, and three drafts."""


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """What drafts there may be, if the model can verify them.

    Attributes:
        tokens: Most draft tokens of one sequence in a forward pass; 0 for none.
        lookup_tokens: Most of those that lookup or a grammar drafts; None for as many.
        model: The draft model; None without one.
    """

    tokens: int = 0
    lookup_tokens: int | None = None
    model: DraftModel | None = None


NO_DRAFTS = DraftOptions()
"""No draft, of whatever kind."""


def with_drafts(
    limits: SchedulerLimits,
    options: DraftOptions,
    runner: Runner,
    model: PreTrainedModel,
    placement: Placement,
    warmup_cache: WarmupCache,
    cost: PassCost,
) -> SchedulerLimits:
    """Return the limits with drafts; log why there are none.

    Args:
        limits: The limits without drafts.
        options: What drafts there may be.
        runner: Runs the forward passes.
        model: The model.
        placement: The placement of the model.
        warmup_cache: The results of an earlier start; those of this one are added.
        cost: What a forward pass costs.
    """
    if not options.tokens:
        return limits
    reason = _unsupported_reason(runner, placement)
    if reason is None:
        _, reason = check_once("drafts", lambda _: _fault(runner, model), (False,), warmup_cache)
    if reason is not None:
        logger.info("No tokens are drafted: %s", reason)
        return limits
    limits = replace(
        limits,
        draft_tokens=options.tokens,
        lookup_tokens=options.lookup_tokens,
        tries_drafts=bool(placement.experts),  # each draft may need others
    )
    if options.model is None:
        return limits
    draft_cost = _measure_draft_model(options.model, cost, limits.sequences)
    return replace(limits, draft_model_cost=draft_cost)


def _measure_draft_model(draft_model: DraftModel, cost: PassCost, rows: int) -> DraftModelCost:
    rows = min(rows, _TIMED_ROWS)
    one, many = draft_model.time(1), draft_model.time(rows)
    tokens_per_second = cost.breakeven_tokens / cost.seconds
    more = max(0.0, many - one) / max(1, rows - 1)
    logger.info("A pass of the draft model takes %.1f %% of one", 100 * one / cost.seconds)
    return DraftModelCost(one * tokens_per_second, more * tokens_per_second)


def _unsupported_reason(runner: Runner, placement: Placement) -> str | None:
    """Return why tokens cannot be dropped, or why there are too few; None if they can."""
    if not isinstance(runner, BatchRunner):
        return "the model is not batched"
    if runner.cache.keeps_state or not runner.cache.keeps_tokens:
        return "the model keeps a state, which cannot go back to an earlier token"
    if placement.max_model_len < len(_TRIAL):
        return "sequences are too short"
    return None


def _fault(runner: Any, model: PreTrainedModel) -> str | None:
    """Compute a token with drafts and alone; return how the logits differ, None if they do not."""
    alone, drafted = (
        _logits(runner, SequenceChunk(-1, 0, tokens, drafts=len(tokens) - 1))
        for tokens in (_TRIAL[:1], _TRIAL)
    )
    if len(drafted) < len(_TRIAL):
        return "the model gives the logits of the last token alone"
    if is_far(drafted[-len(_TRIAL)], alone[-1], model.dtype):
        return "tokens before drafts have other logits than alone"
    return None


def _logits(runner: Runner, row: SequenceChunk) -> torch.Tensor:
    try:
        return runner.run([row])
    finally:
        runner.release(row.key)
