"""The warm-up that both engines share: settings of torch, and the cost of a forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from predictor.dtypes import name_of
from predictor.engine.thread_tuner import ThreadTuner
from predictor.engine.timing import ForwardPass, PassCost, time_forward_passes, time_longer
from predictor.engine.tuned_threads import TunedThreads
from predictor.errors import ModelUnusable, PredictorError, reason_of, start_error
from predictor.heartbeat import Heartbeat
from predictor.linear.choice import choose_kernels, log_kernels
from predictor.linear.table import KERNELS
from predictor.placement.plan import Placement
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_TOKENS, _SECONDS = "pass_tokens", "pass_microseconds"
"""Keys in the file that keeps the results of a start: the break-even tokens, and the duration of a
forward pass of one token."""

_KERNELS = "linear_kernels"
"""Key in the same file: present if the kernels of linear layers were chosen."""


_REMEDIES = {
    "float16": "try dtype bfloat16, which holds larger numbers, or float32",
    "bfloat16": "try dtype float32; if it gives none either, the weights are damaged",
}
"""The end of a sentence about numbers that are not finite, by the serving dtype."""


def set_up_torch(threads: int | None) -> int:
    """Set torch up for forward passes of ever new shapes, and return the most threads to use.

    cuDNN's attention compiles a plan for each length that it meets. Every token of a sequence is a
    new length, so a forward pass of 22 layers took 100 ms with it instead of 40 (H200, torch 2.11).
    PyTorch's own kernels need no such plan.

    Args:
        threads: Most threads to compute with; None leaves that to torch.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if threads is not None:
        _limit_threads(threads)
    return torch.get_num_threads()


@contextmanager
def first_token() -> Iterator[None]:
    """Raise any error of a model's first forward passes as one of ours.

    Raises:
        ModelUnusable: The model cannot compute even one token.
        LoadFailed: The same, because of a device, a volume or memory.
    """
    try:
        yield
    except PredictorError:
        raise
    # Models raise errors of any type.
    except Exception as error:
        logger.exception("The model fails on its first token")
        raise start_error(
            error, f"The model was loaded but fails on its first token: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, NotImplementedError) and "meta tensor" in str(error):
        return (
            "its code uses an offloaded weight outside of the layer that has it; the model is "
            "served where nothing is offloaded, with more memory."
        )
    return reason_of(error)


def check_finite(numbers: Iterable[torch.Tensor], model: PreTrainedModel) -> None:
    """Check that a model's results can be answered with.

    Args:
        numbers: For each result what has to be finite.
        model: The model.

    Raises:
        ModelUnusable: A number is infinite or none.
    """
    if all(bool(torch.isfinite(each).all()) for each in numbers):
        return
    dtype = name_of(model.dtype)
    remedy = _REMEDIES.get(dtype, "its weights are damaged, or not those of this config")
    raise ModelUnusable(
        f"{type(model).__name__} gives no finite numbers in {dtype}, so it cannot answer; {remedy}."
    )


def check_once(
    name: str,
    test: Callable[[bool], str | None],
    steps: Sequence[bool],
    warmup_cache: WarmupCache,
) -> tuple[bool, str | None]:
    """Test a runner, unless that was done at an earlier start.

    Args:
        name: The name under which the result is kept.
        test: Returns what is wrong, if a sequence is continued one token at a time or by chunks.
        steps: Whether to test one token at a time, in order; the first that passes is taken.
        warmup_cache: Keeps what passed.

    Returns:
        Whether one token at a time passed, and what is wrong with the first if nothing passed.
    """
    kept = warmup_cache.get(name)
    if kept:
        return kept > 1, None
    reasons = []
    for one_by_one in steps:
        reasons.append(test(one_by_one))
        if reasons[-1] is None:
            warmup_cache.keep(**{name: 1 + one_by_one})
            return one_by_one, None
    return False, reasons[0]


def choose_linear_kernels(
    run: ForwardPass, most: int, device: int | str, warmup_cache: WarmupCache
) -> None:
    """Choose how linear layers are computed, or take the choice of an earlier start.

    Args:
        run: Runs a forward pass of so many tokens.
        most: Most tokens of a forward pass here.
        device: The device that executes. A GPU has one kernel for each kind of layers.
        warmup_cache: The results of an earlier start; those of this one are added.
    """
    if device != "cpu":
        return
    if warmup_cache.get(_KERNELS) is not None:
        KERNELS.restore(warmup_cache.get)
    elif choose_kernels(KERNELS, run, most):
        warmup_cache.keep(**{_KERNELS: 1}, **KERNELS.numbers())
    log_kernels(KERNELS)


def measure_pass(
    run: ForwardPass,
    chunk: int,
    *,
    timed: int,
    warmup_cache: WarmupCache,
    longer: int = 0,
    weights: int = 0,
    heartbeat: Heartbeat | None = None,
) -> PassCost:
    """Return what a forward pass over the weights costs.

    Also set the number of threads, see `time_forward_passes`, and what the heartbeat expects.

    Args:
        run: Runs a forward pass.
        chunk: The bound of the break-even tokens.
        timed: Tokens of a typical forward pass. Its time decides how many threads are used.
        warmup_cache: The results of an earlier start; those of this one are added.
        longer: Tokens of a longer forward pass. It is timed, too, if the first one says that so
            many take no longer than a pass over the weights, since it may have said so by noise.
        weights: Bytes of the model's weights.
        heartbeat: Learns what a forward pass costs.
    """
    kept = [warmup_cache.get(name) for name in (_TOKENS, _SECONDS, "threads")]
    tokens, microseconds, threads = kept
    is_complete = None not in kept and warmup_cache.get("chunk") == chunk
    if is_complete and tokens is not None and microseconds is not None and threads is not None:
        _limit_threads(threads)
        seconds = microseconds / 1e6
    else:
        warmup_cache.before_timing()
        times = time_forward_passes(run, timed, weights=weights)
        times = time_longer(run, times, longer) if longer > timed else times
        tokens, seconds = times.breakeven_tokens(chunk), times.one
        costs = {_TOKENS: tokens, _SECONDS: round(seconds * 1e6)}
        warmup_cache.keep(**costs, threads=torch.get_num_threads(), chunk=chunk)
    if heartbeat is not None:
        heartbeat.breakeven_tokens = tokens
        heartbeat.passes.expect(seconds)
    return PassCost(seconds, tokens)


def tune_threads(
    limit: int, placement: Placement, warmup_cache: WarmupCache
) -> TunedThreads | None:
    """Return what corrects the number of threads after each forward pass; None if nothing does.

    Args:
        limit: Most threads.
        placement: The placement of the model. A GPU computes with its own threads.
        warmup_cache: Keeps the number for later starts.
    """
    threads = torch.get_num_threads()
    logger.info("Forward passes begin with %d of %d threads", threads, limit)
    if limit == 1 or placement.execution_device != "cpu":
        return None
    tuner = ThreadTuner(limit, threads)
    return TunedThreads(tuner, lambda threads: warmup_cache.keep(threads=threads))


def log_breakeven_tokens(tokens: int) -> None:
    """Log the cost of a forward pass over the weights."""
    logger.info("A pass over the weights costs as much as computing %d tokens", tokens)


def _limit_threads(threads: int) -> None:
    torch.set_num_threads(min(threads, torch.get_num_threads()))
