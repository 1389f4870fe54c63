"""Makes a reader that is warm of a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.encoding.inputs import Run, Text
from predictor.engine.encoding.runner import EncoderRunner
from predictor.engine.generation.warmup import measure_pass_tokens, set_up_torch
from predictor.errors import EngineBroken, LoadFailed, reason_of
from predictor.metrics import EngineMetrics
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_TIMED_TOKENS = 256
"""Of a pass that reads, which has whole texts, and several where many ask."""


def open_encoder_engine(
    model: PreTrainedModel,
    placement: Placement,
    run: Run,
    *,
    limits: BatchLimits,
    threads: int | None,
    metrics: EngineMetrics,
    known: WarmupCache,
    on_broken: Callable[[EngineBroken], None] | None = None,
) -> EncoderEngine:
    """Returns a running reader, after passes that test and time the model.

    Args:
        model: The model, every part in its place.
        placement: Where that is.
        run: Makes what is found of the model's output.
        limits: What passes are held to.
        threads: Most threads to compute with; None leaves that to torch.
        metrics: Where counts and times go.
        known: What an earlier start found out; this one adds to it.
        on_broken: Is told when the reader has ended for good.

    Raises:
        LoadFailed: The model cannot run even one token.
    """
    set_up_torch(threads)
    device = torch.device(placement.execution_device)
    limits = replace(limits, bucket_shapes=device.type == "cpu")
    runner = EncoderRunner(model, device=device, limits=limits, run=run)
    end = _end_of(model)
    try:
        breakeven_tokens = measure_pass_tokens(
            lambda count: runner.run([Text((0,) * (count - 1) + (end,))]),
            limits.tokens,
            timed=min(_TIMED_TOKENS, placement.max_model_len),
            known=known,
        )
    # Models raise whatever they like.
    except Exception as error:
        logger.exception("The model fails on its first token")
        raise LoadFailed(
            f"The model was loaded but fails on its first token: {reason_of(error)}"
        ) from error
    logger.info("A pass over the weights costs as much as computing %d tokens", breakeven_tokens)
    limits = replace(limits, breakeven_tokens=breakeven_tokens)
    return EncoderEngine(
        runner, limits, metrics=metrics, harmless=Text((end,)), on_broken=on_broken
    )


def _end_of(model: PreTrainedModel) -> int:
    """The token that ends a text, without which heads of BART's kind find nothing to look at."""
    config: Any = model.config.get_text_config()
    found = getattr(config, "eos_token_id", None)
    end = int((found[0] if isinstance(found, list) else found) or 0)
    return end if end < config.vocab_size else 0
