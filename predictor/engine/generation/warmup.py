"""Make a warm generation engine of a loaded model: test whether it batches, and time it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.batchability import (
    check_batch_invariance,
    check_encoder_decoder_batch_invariance,
    check_joined_batches,
    count_layers,
    count_vocabulary,
    run_two_tokens,
    unbatchable_reason,
)
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.kv_accounting import usable_tokens
from predictor.engine.generation.kv_cache import SequenceChunk
from predictor.engine.generation.runner import BatchRunner, Runner, SerialRunner
from predictor.engine.model_thread import ThreadOptions
from predictor.engine.warmup import (
    check_finite,
    choose_linear_kernels,
    first_token,
    log_breakeven_tokens,
    measure_breakeven_tokens,
    set_up_torch,
    tune_threads,
)
from predictor.metrics import EngineMetrics
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_TIMED_TOKENS = 32
"""Tokens of a typical forward pass: one of each running sequence, and some of prompts."""


@dataclass(frozen=True, slots=True)
class EngineHandle:
    """A running engine.

    Attributes:
        engine: The engine.
        vocabulary: How many token ids the model knows.
    """

    engine: Engine
    vocabulary: int


def open_engine(
    model: PreTrainedModel,
    placement: Placement,
    *,
    prefill_chunk: int,
    max_sequences: int,
    threads: int | None,
    metrics: EngineMetrics,
    warmup_cache: WarmupCache,
    eos_token_ids: frozenset[int],
    **options: Unpack[ThreadOptions],
) -> EngineHandle:
    """Return a running engine, after forward passes that test and time the model where need be.

    Args:
        model: The model, every part in its place.
        placement: The placement of its parts, and the size of the KV cache.
        prefill_chunk: Prompt tokens in one forward pass, as planned.
        max_sequences: Most sequences that run at one time.
        threads: Most threads to compute with; None leaves that to torch.
        metrics: Takes counts and times.
        warmup_cache: The results of an earlier start; those of this one are added.
        eos_token_ids: Tokens that end a sequence, by the model's configs.
        options: See `ThreadOptions`; the observer is made here.

    Raises:
        ModelUnusable: The model cannot compute even one token, or LoadFailed because of a device.
    """
    limit = set_up_torch(threads)
    with first_token():
        vocabulary = count_vocabulary(model)
        runner, reason = _open_runner(model, placement, warmup_cache)
        most = min(prefill_chunk, usable_tokens(placement.kv_tokens))

        def run(count: int) -> None:
            best = _run_tokens(runner, [index % vocabulary for index in range(count)])
            check_finite([best], model)  # it waits for the device

        choose_linear_kernels(run, most, placement.execution_device, warmup_cache)
        breakeven_tokens = measure_breakeven_tokens(
            *(run, prefill_chunk),
            timed=min(_TIMED_TOKENS, most),
            warmup_cache=warmup_cache,
            weights=placement.weights,
            heartbeat=options.get("heartbeat"),
        )
    limits = _limits(placement, reason, max_sequences, prefill_chunk, breakeven_tokens)
    options["observer"] = tune_threads(limit, placement, warmup_cache)
    engine = Engine(runner, limits, eos_token_ids=eos_token_ids, metrics=metrics, **options)
    return EngineHandle(engine, vocabulary)


def _limits(
    placement: Placement, reason: str | None, sequences: int, chunk: int, breakeven_tokens: int
) -> SchedulerLimits:
    kv_tokens = usable_tokens(placement.kv_tokens)
    if reason is not None:
        logger.warning("Requests are answered one at a time, because of this model: %s", reason)
        return SchedulerLimits(kv_tokens, sequences=1, chunk=chunk)
    log_breakeven_tokens(breakeven_tokens)
    return SchedulerLimits(
        kv_tokens,
        sequences,
        chunk,
        breakeven_tokens,
        max_attention_tokens=placement.max_attention_tokens,
        bucket_shapes=placement.execution_device == "cpu",
    )


def _run_tokens(runner: Runner, tokens: list[int]) -> torch.Tensor:
    """Run one forward pass of tokens that nobody needs; return the best logit of each row."""
    rows = [SequenceChunk(-1, 0, tokens)]
    if isinstance(runner, EncoderDecoderRunner):  # a decoder has one token in a forward pass
        rows = [SequenceChunk(-1 - index, 0, [token]) for index, token in enumerate(tokens)]
    try:
        return runner.run(rows).amax(dim=-1)  # NaN where one is, as for the sampler
    finally:
        for row in rows:
            runner.release(row.key)


def _open_runner(
    model: PreTrainedModel, placement: Placement, warmup_cache: WarmupCache
) -> tuple[Runner, str | None]:
    """The runner that suits the model, and the reason if it does not batch."""
    device = torch.device(placement.execution_device)
    if model.config.is_encoder_decoder:
        return _open_encoder_decoder_runner(model, device, warmup_cache)
    reason = unbatchable_reason(model)
    if reason is None:
        runner = BatchRunner(
            model,
            device=device,
            layers=count_layers(model),
            pages=placement.kv_tokens,
            max_length=placement.max_model_len,
        )
        reason = _test_once(lambda: check_batch_invariance(runner, model, device), warmup_cache)
        if reason is None:
            return runner, None
    return SerialRunner(model, device=device), reason


def _open_encoder_decoder_runner(
    model: PreTrainedModel, device: torch.device, warmup_cache: WarmupCache
) -> tuple[Runner, str | None]:
    runner = EncoderDecoderRunner(model, device=device)
    reason = _test_once(lambda: check_encoder_decoder_batch_invariance(runner, model), warmup_cache)
    if reason is None:
        alone = _test_once(lambda: check_joined_batches(runner, model), warmup_cache, "joins")
        if alone is not None:
            runner.most_padding = None
            logger.info("Sources that come later run in passes of their own: %s", alone)
        return runner, None
    serial = EncoderDecoderRunner(model, device=device, alone=True)
    run_two_tokens(serial, model)
    return serial, reason


def _test_once(
    test: Callable[[], str | None], warmup_cache: WarmupCache, name: str = "batches"
) -> str | None:
    """The reason against batching that a test gives, unless the test passed at an earlier start."""
    if warmup_cache.get(name):
        return None
    reason = test()
    if reason is None:
        warmup_cache.keep(**{name: 1})
    return reason
