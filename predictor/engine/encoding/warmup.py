"""Make a warm encoder engine of a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import torch
from transformers import PreTrainedModel

from predictor.checkpoint.vocabulary import vocabulary_of
from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.encoding.inputs import EncoderInput
from predictor.engine.encoding.invariance import check_padding_invariance
from predictor.engine.encoding.postprocess import Postprocess
from predictor.engine.encoding.runner import EncoderRunner
from predictor.engine.model_thread import ThreadOptions
from predictor.engine.warmup import (
    check_finite,
    check_once,
    choose_linear_kernels,
    first_token,
    log_breakeven_tokens,
    measure_pass,
    set_up_torch,
    tune_threads,
)
from predictor.errors import restart_may_help
from predictor.heartbeat import Heartbeat
from predictor.metrics import EngineMetrics
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_INVARIANT = "padding_invariant"
"""Key in the file that keeps the results of a start: present if padding changes no answer."""

_SHORTEST = "shortest_text"
"""Key in the same file: the fewest tokens that the model can compute."""

_LENGTHS = (2, 4, 8, 16, 32)
"""Tokens of the texts that are tried if the model fails on one token. CANINE and Funnel pool
neighbours, and need as many as they pool."""

_TIMED_TOKENS = 256
"""Tokens of a typical forward pass: whole texts, and several of them under load."""


@dataclass(frozen=True, slots=True)
class EncoderEngineHandle:
    """A running engine.

    Attributes:
        engine: The engine.
        reason: Why it runs texts one at a time and unpadded; None if it batches them.
    """

    engine: EncoderEngine
    reason: str | None


def open_encoder_engine(
    model: PreTrainedModel,
    placement: Placement,
    postprocess: Postprocess,
    *,
    limits: BatchLimits,
    threads: int | None,
    metrics: EngineMetrics,
    warmup_cache: WarmupCache,
    **options: Unpack[ThreadOptions],
) -> EncoderEngineHandle:
    """Return a running engine, after forward passes that test and time the model.

    Args:
        model: The model, every part in its place.
        placement: The placement of its parts.
        postprocess: Makes a result for each row of the model's output.
        limits: The limits of a forward pass.
        threads: Most threads to compute with; None leaves that to torch.
        metrics: Takes counts and times.
        warmup_cache: The results of an earlier start; those of this one are added.
        options: See `ThreadOptions`; the observer is made here.

    Raises:
        ModelUnusable: The model cannot compute even one token.
        LoadFailed: The same, because of a device, a volume or memory.
    """
    limit = set_up_torch(threads)
    device = torch.device(placement.execution_device)
    limits = replace(limits, bucket_shapes=device.type == "cpu")
    end = _end_of_text(model)
    open_runner = partial(EncoderRunner, model, device=device, postprocess=postprocess)
    shortest = _find_shortest(open_runner, limits, end, warmup_cache)
    runner = open_runner(limits=limits, shortest=shortest)
    longest = min(placement.max_model_len, limits.tokens * 2 // 5)  # of two, padded
    reason = _unbatchable_reason(runner, model, end, longest, warmup_cache)
    if reason is not None:
        limits = replace(limits, rows=1, bucket_shapes=False, delay=0.0)
        runner = open_runner(limits=limits, shortest=shortest)
    tokens = _measure(runner, end, limits.tokens, placement, warmup_cache, options.get("heartbeat"))
    log_breakeven_tokens(tokens)
    options["observer"] = tune_threads(limit, placement, warmup_cache)
    engine = EncoderEngine(
        runner,
        replace(limits, breakeven_tokens=tokens),
        metrics=metrics,
        harmless=EncoderInput((end,)),
        **options,
    )
    return EncoderEngineHandle(engine, reason)


def _find_shortest(
    open_runner: Callable[..., EncoderRunner],
    limits: BatchLimits,
    end: int,
    warmup_cache: WarmupCache,
) -> int:
    """Return the fewest tokens that the model can compute, tried at the first start."""
    cached = warmup_cache.get(_SHORTEST)
    if cached is not None:
        return cached
    text = [EncoderInput((end,))]
    open_runner = partial(open_runner, limits=replace(limits, bucket_shapes=False))
    with first_token():
        try:
            open_runner().run(text)
            shortest = 1
        # Models raise errors of any type.
        except Exception as error:
            if restart_may_help(error):
                raise
            lengths = (n for n in _LENGTHS if _computes(open_runner(shortest=n), text))
            shortest = next(lengths, 0)
            if not shortest:
                raise
    warmup_cache.keep(**{_SHORTEST: shortest})
    return shortest


def _computes(runner: EncoderRunner, text: list[EncoderInput]) -> bool:
    try:
        runner.run(text)
    except Exception:
        return False
    return True


def _unbatchable_reason(
    runner: EncoderRunner,
    model: PreTrainedModel,
    end: int,
    longest: int,
    warmup_cache: WarmupCache,
) -> str | None:
    def check(_: bool) -> str | None:
        return check_padding_invariance(runner, model, end=end, longest=max(1, longest))

    with first_token():
        _, reason = check_once(_INVARIANT, check, (False,), warmup_cache)
    if reason is not None:
        logger.warning("Texts run one at a time and unpadded, because of this model: %s", reason)
    return reason


def _measure(
    runner: EncoderRunner,
    end: int,
    most: int,
    placement: Placement,
    warmup_cache: WarmupCache,
    heartbeat: Heartbeat | None,
) -> int:
    """Return how many tokens take as long to compute as a forward pass over the weights."""

    def run(count: int) -> None:
        results = runner.run([EncoderInput((0,) * (count - 1) + (end,))])
        check_finite(map(torch.from_numpy, results), runner.model)

    with first_token():
        longest = min(most, placement.max_model_len)
        choose_linear_kernels(run, longest, placement.execution_device, warmup_cache)
        cost = measure_pass(
            run,
            most,
            timed=min(_TIMED_TOKENS, placement.max_model_len),
            warmup_cache=warmup_cache,
            weights=placement.weights,
            heartbeat=heartbeat,
        )
    return cost.breakeven_tokens


def _end_of_text(model: PreTrainedModel) -> int:
    """The token that ends a text. Classifiers of BART's kind fail on a text without it."""
    config: Any = model.config.get_text_config()
    eos = getattr(config, "eos_token_id", None)
    end = int((eos[0] if isinstance(eos, list) else eos) or 0)
    return end if end < vocabulary_of(config) else 0
