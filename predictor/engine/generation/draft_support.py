"""Whether drafts can be verified for a model, by its placement and by a test."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.batchability import is_far
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.engine.warmup import check_once
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_TRIAL = (0, 1, 0, 1)
"""Tokens of the forward pass that tests a model: a known one, and three drafts."""


def supported_draft_tokens(
    runner: Runner,
    model: PreTrainedModel,
    placement: Placement,
    warmup_cache: WarmupCache,
    limit: int,
) -> int:
    """Return how many draft tokens a sequence may have, and log why there are none.

    Args:
        runner: Runs the forward passes.
        model: The model.
        placement: The placement of the model.
        warmup_cache: The results of an earlier start; those of this one are added.
        limit: Most draft tokens by the settings.
    """
    if not limit:
        return 0
    reason = _unsupported_reason(runner, placement)
    if reason is None:
        _, reason = check_once("drafts", lambda _: _fault(runner, model), (False,), warmup_cache)
    if reason is not None:
        logger.info("No tokens are drafted: %s", reason)
        return 0
    return limit


def _unsupported_reason(runner: Runner, placement: Placement) -> str | None:
    """Return why tokens cannot be dropped, or why drafts do not pay; None if they can and do."""
    if not isinstance(runner, BatchRunner):
        return "the model is not batched"
    if runner.cache.keeps_state or not runner.cache.keeps_tokens:
        return "the model keeps a state, which cannot go back to an earlier token"
    if placement.experts:
        return "experts are read one by one, and each draft may need others"
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
