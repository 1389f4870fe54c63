"""Makes a reader that is warm of a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from predictor.engine.batching import BatchLimits
from predictor.engine.opening import measure_pass_tokens, set_up_torch
from predictor.engine.reader import Reader
from predictor.engine.reading import Run, Text
from predictor.engine.reading_runner import ReadingRunner
from predictor.errors import EngineBroken, LoadFailed, reason_of
from predictor.metrics import EngineMetrics
from predictor.placement.plan import Placement
from predictor.weights.known import Known

logger = logging.getLogger(__name__)

_TIMED_TOKENS = 256
"""Of a pass that reads, which has whole texts, and several where many ask."""


def open_reader(
    model: PreTrainedModel,
    placement: Placement,
    run: Run,
    *,
    limits: BatchLimits,
    threads: int | None,
    metrics: EngineMetrics,
    known: Known,
    on_broken: Callable[[EngineBroken], None] | None = None,
) -> Reader:
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
    limits = replace(limits, few_shapes=device.type == "cpu")
    runner = ReadingRunner(model, device=device, limits=limits, run=run)
    try:
        pass_tokens = measure_pass_tokens(
            lambda count: runner.run([Text((0,) * count)]),
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
    logger.info("A pass over the weights costs as much as computing %d tokens", pass_tokens)
    limits = replace(limits, pass_tokens=pass_tokens)
    return Reader(runner, limits, metrics=metrics, on_broken=on_broken)
