"""The runner that suits a model, which is tested: does it batch, and is it exact?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.batchability import (
    check_batch_invariance,
    check_serial,
    refuse_serial,
)
from predictor.engine.generation.cache_kinds import keeps_state, unbatchable_reason
from predictor.engine.generation.encoder_decoder_warmup import open_encoder_decoder_runner
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.engine.generation.serial_runner import SerialRunner
from predictor.engine.warmup import check_finite, check_once
from predictor.placement.plan import Placement
from predictor.private.cache_layers import cache_layers
from predictor.weights.store.warmup_cache import WarmupCache

_ADAPTERS_AT_ONCE = 8
"""Adapters that are tried in one forward pass: few rows, which any plan has room for."""


@dataclass(frozen=True, slots=True)
class OpenedRunner:
    """A runner that was tested.

    Attributes:
        runner: The runner.
        reason: Why it does not batch; None if it does.
        one_by_one: Whether sequences that have begun continue one token at a time.
    """

    runner: Runner
    reason: str | None
    one_by_one: bool = False


def open_runner(
    model: PreTrainedModel,
    placement: Placement,
    max_sequences: int,
    chunk: int,
    warmup_cache: WarmupCache,
    adapters: LoadedAdapters,
) -> OpenedRunner:
    """Return the runner that suits a model, after forward passes that test it where need be.

    Args:
        model: The model, every part in its place.
        placement: Where its parts are, and the size of the KV cache.
        max_sequences: Most sequences that run at one time.
        chunk: Prompt tokens in one forward pass, as planned.
        warmup_cache: The results of an earlier start; those of this one are added.
        adapters: The adapters that are attached to the model.

    Raises:
        ModelUnusable: Even one at a time, sequences get other logits than at once.
    """
    opened = _open(model, placement, max_sequences, chunk, warmup_cache, adapters)
    _try_adapters(opened.runner, model, sorted(adapters.names))
    return opened


def _open(
    model: PreTrainedModel,
    placement: Placement,
    max_sequences: int,
    chunk: int,
    warmup_cache: WarmupCache,
    adapters: LoadedAdapters,
) -> OpenedRunner:
    device = torch.device(placement.execution_device)
    if model.config.is_encoder_decoder:
        return OpenedRunner(*open_encoder_decoder_runner(model, device, warmup_cache))
    reason = unbatchable_reason(model)
    if reason is None:
        runner = BatchRunner(
            model,
            device=device,
            layers=cache_layers(model),
            pages=placement.kv_tokens,
            max_length=placement.max_model_len,
            slots=placement.state_slots or max_sequences,
            window_pages=placement.window_tokens,
            adapters=adapters,
            positions=max_sequences,
            block_tokens=chunk if keeps_state(model) else BLOCK_TOKENS,
        )

        def check_batch(one_by_one: bool) -> str | None:
            return check_batch_invariance(runner, model, device, one_by_one=one_by_one)

        steps = (False, True) if runner.cache.keeps_state else (False,)
        for name, gathers in (("batches", False), ("batches_gathered", True)):
            runner.cache.gathers = gathers
            one_by_one, reason = check_once(name, check_batch, steps, warmup_cache)
            if reason is None:
                return OpenedRunner(runner, None, one_by_one)
    serial = SerialRunner(model, device=device, adapters=adapters, positions=max_sequences)

    def check(one_by_one: bool) -> str | None:
        return check_serial(serial, model, device, one_by_one=one_by_one)

    steps = (True,) if keeps_state(model) else (False, True)
    one_by_one, fault = check_once("serves", check, steps, warmup_cache)
    if fault is not None:
        raise refuse_serial(model, fault)
    return OpenedRunner(serial, reason, one_by_one)


def _try_adapters(runner: Runner, model: PreTrainedModel, names: Sequence[str]) -> None:
    """Compute two tokens with each adapter, some adapters in a forward pass."""
    for first in range(0, len(names), _ADAPTERS_AT_ONCE):
        some = names[first : first + _ADAPTERS_AT_ONCE]
        rows = [SequenceChunk(-1 - row, 0, [0, 0], name) for row, name in enumerate(some)]
        try:
            check_finite([runner.run(rows).amax(dim=-1)], model)
        finally:
            for row in rows:
                runner.release(row.key)
