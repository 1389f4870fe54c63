"""Make a warm generation engine of a loaded model: test whether it batches, and time it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Unpack

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.batchability import count_vocabulary
from predictor.engine.generation.draft_support import NO_DRAFTS, DraftOptions, with_drafts
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.kv_accounting import usable_tokens, usable_window_tokens
from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.open_runner import OpenedRunner, open_runner
from predictor.engine.generation.prompt_chunks import chunk_sizes
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.engine.model_thread import ThreadOptions
from predictor.engine.timing import PassCost
from predictor.engine.warmup import (
    check_finite,
    choose_linear_kernels,
    first_token,
    log_breakeven_tokens,
    measure_pass,
    set_up_torch,
    tune_threads,
)
from predictor.heartbeat import Heartbeat
from predictor.metrics import EngineMetrics
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_LONGER = 512
"""Tokens of a longer forward pass, which takes a GPU a while."""

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


@dataclass(frozen=True, slots=True)
class Chunks:
    """How many prompt tokens a forward pass may have.

    Attributes:
        least: As many as are computed at one time, if no more pay.
        planned: As many as the plan has memory for.
        target: Seconds that a step should take at most beside replies.
    """

    least: int
    planned: int
    target: float = 1.0


def open_engine(
    model: PreTrainedModel,
    placement: Placement,
    *,
    chunks: Chunks,
    max_sequences: int,
    threads: int | None,
    metrics: EngineMetrics,
    warmup_cache: WarmupCache,
    eos_token_ids: frozenset[int],
    adapters: LoadedAdapters,
    prefix_cache: bool = False,
    drafts: DraftOptions = NO_DRAFTS,
    **options: Unpack[ThreadOptions],
) -> EngineHandle:
    """Return a running engine, after forward passes that test and time the model where need be.

    Args:
        model: The model, every part in its place.
        placement: Where its parts are, and the size of the KV cache.
        chunks: How many prompt tokens a forward pass may have.
        max_sequences: Most sequences that run at one time.
        threads: Most threads; None leaves that to torch.
        metrics: Takes counts and times.
        warmup_cache: The results of an earlier start; those of this one are added.
        eos_token_ids: Tokens that end a sequence, by the model's configs.
        adapters: The adapters that are attached to the model.
        prefix_cache: Whether sequences share what is computed of equal prefixes, if the model can.
        drafts: What drafts there may be, if the model can verify them.
        options: See `ThreadOptions`; the observer is made here.

    Raises:
        ModelUnusable: The model cannot compute, or LoadFailed because of a device.
    """
    limit = set_up_torch(threads)
    with first_token():
        opened, limits = _warm_up(
            *(model, placement, warmup_cache, adapters, max_sequences, chunks, drafts),
            options.get("heartbeat"),
        )
    options["observer"] = tune_threads(limit, placement, warmup_cache)
    engine = Engine(
        *(opened.runner, limits),
        eos_token_ids=eos_token_ids,
        metrics=metrics,
        cache=_shared_cache(opened.runner) if prefix_cache else None,
        draft_model=drafts.model,
        **options,
    )
    return EngineHandle(engine, count_vocabulary(model))


def _warm_up(
    model: PreTrainedModel,
    placement: Placement,
    warmup_cache: WarmupCache,
    adapters: LoadedAdapters,
    max_sequences: int,
    chunks: Chunks,
    drafts: DraftOptions,
    heartbeat: Heartbeat | None,
) -> tuple[OpenedRunner, SchedulerLimits]:
    """Choose, test and time what runs the model; return it with the limits of its passes."""
    opened = open_runner(model, placement, max_sequences, chunks.planned, warmup_cache, adapters)
    parts = opened.runner, model, placement, warmup_cache
    cost = _time_passes(*parts, chunks, heartbeat)
    limits = _limits(placement, opened, max_sequences, chunks, cost)
    return opened, with_drafts(limits, drafts, *parts, cost)


def _time_passes(
    runner: Runner,
    model: PreTrainedModel,
    placement: Placement,
    warmup_cache: WarmupCache,
    chunks: Chunks,
    heartbeat: Heartbeat | None,
) -> PassCost:
    """Choose the quickest kernels; return what a forward pass over the weights costs."""
    vocabulary = count_vocabulary(model)
    most = min(chunks.least, chunks.planned, _most_tokens(placement))

    def run(count: int) -> None:
        best = _run_tokens(runner, [index % vocabulary for index in range(count)])
        check_finite([best], model)  # it waits for the device

    choose_linear_kernels(run, most, placement.execution_device, warmup_cache)
    return measure_pass(
        *(run, chunks.planned),
        timed=min(_TIMED_TOKENS, most),
        warmup_cache=warmup_cache,
        longer=min(_LONGER, most),
        weights=placement.weights,
        heartbeat=heartbeat,
    )


def _shared_cache(runner: Runner) -> PagedKVCache | None:
    """The cache whose prefixes sequences can share; None if they cannot."""
    cache = runner.cache if isinstance(runner, BatchRunner) else None
    if cache is not None and cache.can_share:
        return cache
    logger.info("Equal prefixes are computed for each request: this model cannot share them")
    return None


def _limits(
    placement: Placement,
    opened: OpenedRunner,
    sequences: int,
    chunks: Chunks,
    cost: PassCost,
) -> SchedulerLimits:
    kv_tokens, one_by_one = _most_tokens(placement), opened.one_by_one
    chunk = chunks.planned
    keeps_tokens = placement.kv_tokens > 0
    if one_by_one and chunk < placement.max_model_len:
        logger.warning("Prompts of more than %d tokens continue token by token", chunk)
    if opened.reason is not None:
        logger.warning("Requests are answered one at a time: %s", opened.reason)
        return SchedulerLimits(
            kv_tokens, 1, chunk, keeps_tokens=keeps_tokens, one_by_one=one_by_one
        )
    log_breakeven_tokens(cost.breakeven_tokens)
    cache = opened.runner.cache if isinstance(opened.runner, BatchRunner) else None
    has_slots = cache is not None and cache.keeps_state
    is_fixed = cache is None or has_slots
    alone, beside = (chunk, 0) if is_fixed else _chunk_sizes(chunks, cost)
    return SchedulerLimits(
        kv_tokens,
        min(sequences, placement.state_slots or sequences),
        alone,
        cost.breakeven_tokens,
        reply_chunk=beside,
        max_attention_tokens=placement.max_attention_tokens,
        bucket_shapes=placement.execution_device == "cpu",
        keeps_tokens=keeps_tokens,
        keeps_state=has_slots,
        least_row_tokens=placement.least_row_tokens,
        one_by_one=one_by_one,
        window=placement.window,
        window_tokens=usable_window_tokens(placement.window_tokens, placement.kv_tokens, chunk),
    )


def _chunk_sizes(chunks: Chunks, cost: PassCost) -> tuple[int, int]:
    """Return the most prompt tokens of a forward pass: for prompts alone, and beside replies."""
    alone, beside = chunk_sizes(
        breakeven_tokens=cost.breakeven_tokens,
        seconds=cost.seconds,
        planned=chunks.planned,
        least=chunks.least,
        target=chunks.target,
    )
    logger.info("Prompts are computed by %d tokens, and by %d beside replies", alone, beside)
    return alone, beside


def _most_tokens(placement: Placement) -> int:
    """Return the tokens that fit the KV cache; without one, those of the longest sequence."""
    return usable_tokens(placement.kv_tokens or placement.max_model_len)


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
