"""Makes an engine that is warm of a loaded model: can it be batched, and what does a pass cost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from predictor.engine.batchability import (
    check_batch_invariance,
    check_encoder_decoder_batch_invariance,
    count_layers,
    count_vocabulary,
    run_two_tokens,
    unbatchable_reason,
)
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.kv_cache import Row
from predictor.engine.generation.runner import BatchRunner, Runner, SerialRunner
from predictor.engine.generation.scheduler import Limits
from predictor.engine.timing import Pass, time_passes
from predictor.errors import EngineBroken, LoadFailed, reason_of
from predictor.metrics import EngineMetrics
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_TIMED_TOKENS = 32
"""Of a pass that generates, which has a token of each running sequence and some of prompts."""


@dataclass(frozen=True, slots=True)
class EngineHandle:
    """An engine that runs.

    Attributes:
        engine: The engine.
        runner: What runs the passes.
        vocabulary: Token ids that the model knows.
    """

    engine: Engine
    runner: Runner
    vocabulary: int


def open_engine(
    model: PreTrainedModel,
    placement: Placement,
    *,
    prefill_chunk: int,
    max_sequences: int,
    threads: int | None,
    metrics: EngineMetrics,
    known: WarmupCache,
    on_broken: Callable[[EngineBroken], None] | None = None,
) -> EngineHandle:
    """Returns a running engine, after passes that test and time the model, where need be.

    Args:
        model: The model, every part in its place.
        placement: Where that is, and how many tokens the KV cache was planned for.
        prefill_chunk: Prompt tokens in one pass, as planned.
        max_sequences: Most sequences that run at one time.
        threads: Most threads to compute with; None leaves that to torch.
        metrics: Where counts and times go.
        known: What an earlier start found out; this one adds to it.
        on_broken: Is told when the engine has ended for good.

    Raises:
        LoadFailed: The model cannot run even one token.
    """
    set_up_torch(threads)
    vocabulary = count_vocabulary(model)
    try:
        runner, reason = _runner(model, placement, known)
        breakeven_tokens = _pass_tokens(runner, vocabulary, placement, prefill_chunk, known)
    # Models raise whatever they like.
    except Exception as error:
        logger.exception("The model fails on its first token")
        raise LoadFailed(
            f"The model was loaded but fails on its first token: {reason_of(error)}"
        ) from error
    limits = _limits(placement, reason, max_sequences, prefill_chunk, breakeven_tokens)
    engine = Engine(runner, limits, ends=_ends(model), metrics=metrics, on_broken=on_broken)
    return EngineHandle(engine, runner, vocabulary)


def set_up_torch(threads: int | None) -> None:
    """Has torch compute as suits passes of ever new shapes.

    cuDNN's attention compiles a plan for each length that it meets. Every token of a sequence is a
    new length, so that a pass of 22 layers took 100 ms with it instead of 40 (H200, torch 2.11);
    PyTorch's own kernels need no such plan.

    Args:
        threads: Most threads to compute with; None leaves that to torch.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if threads is not None:
        torch.set_num_threads(min(threads, torch.get_num_threads()))


def _limits(
    placement: Placement, reason: str | None, sequences: int, chunk: int, breakeven_tokens: int
) -> Limits:
    # One place of the KV cache is the padding's; a sequence's last token is never cached.
    kv_tokens = placement.kv_tokens - 1
    if reason is None:
        logger.info(
            "A pass over the weights costs as much as computing %d tokens", breakeven_tokens
        )
        return Limits(
            kv_tokens,
            sequences,
            chunk,
            breakeven_tokens,
            width=placement.pass_width,
            bucket_shapes=placement.execution_device == "cpu",
        )
    logger.warning("Requests are answered one at a time, because of this model: %s", reason)
    return Limits(kv_tokens, sequences=1, chunk=chunk)


def _pass_tokens(
    runner: Runner, vocabulary: int, placement: Placement, chunk: int, known: WarmupCache
) -> int:
    def run(count: int) -> None:
        tokens = [index % vocabulary for index in range(count)]
        rows = [Row(-1, 0, tokens)]
        if isinstance(runner, EncoderDecoderRunner):  # a decoder has one token in a pass
            rows = [Row(-1 - index, 0, [token]) for index, token in enumerate(tokens)]
        runner.run(rows).argmax().item()
        for row in rows:
            runner.release(row.key)

    tokens = min(_TIMED_TOKENS, chunk, placement.kv_tokens - 1)
    return measure_pass_tokens(run, chunk, timed=tokens, known=known)


def measure_pass_tokens(run: Pass, chunk: int, *, timed: int, known: WarmupCache) -> int:
    """Returns how many tokens' computation takes as long as one pass over the weights.

    Sets the number of threads too, see `time_passes`.

    Args:
        run: Runs a pass.
        chunk: The result's bound.
        timed: Tokens of a pass as the model will mostly run; what its time says of threads counts.
        known: What an earlier start found out; this one adds to it.
    """
    found, threads = known.get("breakeven_tokens"), known.get("threads")
    if found is not None and threads is not None and known.get("chunk") == chunk:
        torch.set_num_threads(min(threads, torch.get_num_threads()))
    else:
        found = time_passes(run, timed).breakeven_tokens(chunk)
        known.keep(breakeven_tokens=found, threads=torch.get_num_threads(), chunk=chunk)
    return found


def _runner(
    model: PreTrainedModel, placement: Placement, known: WarmupCache
) -> tuple[Runner, str | None]:
    """The runner that suits the model, and why it is not the batching one."""
    device = torch.device(placement.execution_device)
    if model.config.is_encoder_decoder:
        return _paired_runner(model, device, known)
    reason = unbatchable_reason(model)
    if reason is None:
        batching = BatchRunner(
            model,
            device=device,
            layers=count_layers(model),
            kv_tokens=placement.kv_tokens,
            max_length=placement.max_model_len,
        )
        reason = _unless_known(lambda: check_batch_invariance(batching, model, device), known)
        if reason is None:
            return batching, None
    return SerialRunner(model, device=device), reason


def _unless_known(test: Callable[[], str | None], known: WarmupCache) -> str | None:
    """What a test finds against batching, if no earlier start found that there is nothing."""
    if known.get("batches"):
        return None
    reason = test()
    if reason is None:
        known.keep(batches=1)
    return reason


def _paired_runner(
    model: PreTrainedModel, device: torch.device, known: WarmupCache
) -> tuple[Runner, str | None]:
    runner = EncoderDecoderRunner(model, device=device)
    reason = _unless_known(lambda: check_encoder_decoder_batch_invariance(runner, model), known)
    if reason is None:
        return runner, None
    by_itself = EncoderDecoderRunner(model, device=device, alone=True)
    run_two_tokens(by_itself, model)
    return by_itself, reason


def _ends(model: PreTrainedModel) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)
