"""Choose the kernels of a model's linear layers, in a few forward passes at the start."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby

from predictor.linear.kernels import Kernel
from predictor.linear.table import BUCKETS, LayerKernels, LinearKernels, bucket_of

logger = logging.getLogger(__name__)

_TIMED_ROWS = (1, 8, 128, 32, 4, 16, 64, 2)
"""The rows of forward passes that are timed, what matters most first: one user, several, and a
prompt. Beyond 128 rows the order of kernels does not change."""

_SECONDS = 5.0
"""Seconds after which no other forward pass begins for this alone."""

_PASSES = 4
"""Most forward passes for the same rows. One is enough for a model of a dozen layers."""


def choose_kernels(
    kernels: LinearKernels,
    run: Callable[[int], object],
    most: int,
    clock: Callable[[], float] = time.perf_counter,
) -> bool:
    """Time the kernels of a model and choose the best; return whether there was a choice.

    If forward passes take long, as those of a large model from a disk do, only one is run. The
    other numbers of rows are timed in the forward passes that come first.

    Args:
        kernels: The model's kernels.
        run: Runs a forward pass of so many tokens, and waits for its end.
        most: Most tokens of a forward pass.
        clock: Returns the time in seconds.
    """
    if not _has_choice(kernels):
        return False
    end = clock() + _SECONDS
    timed: list[int] = []
    for rows in _TIMED_ROWS:
        if rows <= most and timed and clock() >= end:
            _leave_on_trial(kernels, timed)
            return True
        if rows <= most:
            _try_rows(kernels, run, rows)
            timed.append(bucket_of(rows))
    _choose_others(kernels, sorted(timed))
    return True


def log_kernels(kernels: LinearKernels) -> None:
    """Log how linear layers are computed, one line for each format."""
    for title, kinds in _by_format(kernels):
        logger.info("Linear layers (%s) are computed by: %s", title, ", ".join(_choices(kinds)))


def _has_choice(kernels: LinearKernels) -> bool:
    """Whether a kind of layers has several kernels, or no kind is known before a forward pass."""
    kinds = list(kernels)
    return not kinds or any(len(kind.candidates) > 1 for kind in kinds)


def _try_rows(kernels: LinearKernels, run: Callable[[int], object], rows: int) -> None:
    kernels.begin_trials(bucket_of(rows))
    try:
        for _ in range(_PASSES):
            run(rows)
            if not kernels.has_open_trials(bucket_of(rows)):
                break
    finally:
        kernels.end_trials(bucket_of(rows))


def _leave_on_trial(kernels: LinearKernels, timed: list[int]) -> None:
    for bucket in set(range(BUCKETS)) - set(timed):
        kernels.begin_trials(bucket)


def _choose_others(kernels: LinearKernels, timed: list[int]) -> None:
    """Have buckets that were not timed go with the next larger one, or the largest, that was."""
    for kind in kernels:
        for bucket in set(range(BUCKETS)) - set(timed):
            nearest = next((other for other in timed if other > bucket), timed[-1])
            kind.choose(bucket, kind.chosen[nearest])


def _by_format(kernels: LinearKernels) -> Iterator[tuple[str, list[LayerKernels]]]:
    kinds = sorted((kind for kind in kernels if len(kind.candidates) > 1), key=_title)
    for title, group in groupby(kinds, key=_title):
        yield title, list(group)


def _title(kernels: LayerKernels) -> str:
    kind = kernels.kind
    return str(kind.dtype).removeprefix("torch.") if kind.format is None else kind.format.title


def _choices(kinds: list[LayerKernels]) -> Iterator[str]:
    """Yield the kernels of most layers and their rows."""
    usual = [_most_common(kind.chosen[bucket] for kind in kinds) for bucket in range(BUCKETS)]
    end = 0
    for kernel, group in groupby(usual):
        begin, end = end, end + len(list(group))
        yield f"{kernel.title} for {_rows(begin, end)}"


def _rows(begin: int, end: int) -> str:
    """Return the rows of some buckets in words."""
    first, last = (1 << begin >> 1) + 1 if begin else 1, 1 << end >> 1
    if end == BUCKETS:
        return f"{first} rows and more"
    return f"{first} to {last} rows" if last > first else "1 row"


def _most_common(kernels: Iterator[Kernel]) -> Kernel:
    return Counter(kernels).most_common(1)[0][0]
