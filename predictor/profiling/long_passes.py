"""Forward passes of many tokens, without running all of a model's loops over tokens.

Some models compute a state token by token. On the meta device that takes a fraction of a
millisecond for each token and block, so minutes for a long sequence. The number of operations is
limited. Beyond it, the peak in each module is extrapolated from shorter passes: a state is fixed,
activations grow with the tokens, and the scores of attention with their square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from predictor.live_bytes import TooManyOperations
from predictor.profiling.meta_run import ForwardPass, MetaRun

MOST_OPERATIONS = 12_000
"""Operations of a long forward pass beyond twice those of a short one: about a second."""

_CHUNK = 256
"""Tokens from which models that compute a state in chunks of tokens run several chunks."""

_TWO = (8, 16)
"""Tokens of the passes that show how operations grow with the tokens."""

_LEAST = 4
"""Passes that sizes are extrapolated from: three show a bend, and the fourth whether it is one or
the place where one tensor outgrows another."""


def run_up_to(
    run: MetaRun,
    tokens: int,
    past: Callable[[], Any],
    *,
    most_operations: int,
    keeps_state: bool = True,
    earlier: Mapping[int, ForwardPass] | None = None,
) -> dict[int, ForwardPass]:
    """Run a forward pass of one sequence, or shorter ones if it takes too many operations.

    Args:
        run: The model.
        tokens: New tokens of the pass.
        past: Returns the cache that it extends.
        most_operations: The most operations that it may take.
        keeps_state: Whether the model keeps a state, which it may compute token by token.
        earlier: Passes of the same kind that have run, measured by module.

    Returns:
        The pass by its tokens, or shorter passes by theirs.
    """
    shorter: dict[int, ForwardPass] = {}
    if tokens > 2 * _CHUNK or (keeps_state and tokens > _TWO[-1]):
        shorter |= earlier or {}
        for length in set(_TWO) - shorter.keys():
            shorter[length] = run.run(1, length, past(), by_module=True)
        if tokens > 2 * _CHUNK and _predict(shorter, 2 * _CHUNK) == shorter[_TWO[-1]].operations:
            shorter[_CHUNK] = run.run(1, _CHUNK, past(), by_module=True)
    if 1.5 * _predict(shorter, tokens) <= most_operations:
        try:
            return {tokens: run.run(1, tokens, past(), most_operations=most_operations)}
        except TooManyOperations:
            pass
    length = 2 * max(shorter, default=4)
    while length < tokens:
        last = shorter[length] = run.run(1, length, past(), by_module=True)
        spent = sum(each.operations for each in shorter.values())
        if len(shorter) >= _LEAST and spent + 2 * last.operations > most_operations:
            break
        length *= 2
    return shorter


def peak_of(passes: Mapping[int, ForwardPass], tokens: int) -> int:
    """Return the peak of a pass of so many tokens, measured or extrapolated in each module."""
    if tokens in passes:
        return passes[tokens].peak
    lengths = sorted(passes)
    scopes = passes[lengths[-1]].peaks
    return max(
        extrapolate(lengths, [passes[n].peaks.get(scope, 0) for n in lengths], tokens)
        for scope in scopes
    )


def extrapolate(lengths: Sequence[int], sizes: Sequence[int], length: int) -> int:
    """Return the size at a length beyond others.

    If the last three sizes are on a line, it is the line's. If they bend upwards, and those before
    them do so equally, it goes on bending. Else the line through the last two counts.
    """
    (b, c), (y, z) = lengths[-2:], sizes[-2:]
    size = z + (z - y) / (c - b) * (length - c)
    bends = [_bend(lengths[i : i + 3], sizes[i : i + 3]) for i in range(len(lengths) - 2)]
    if len(bends) > 1 and math.isclose(*bends[-2:], rel_tol=0.1):
        size += max(0.0, bends[-1]) * (length - c) * (length - b)
    return max(0, math.ceil(size))


def _predict(passes: Mapping[int, ForwardPass], tokens: int) -> int:
    """Return how many operations a pass of so many tokens takes; 0 if that is not known."""
    lengths = sorted(passes)
    if len(lengths) < 2:
        return 0
    return extrapolate(lengths[-2:], [passes[n].operations for n in lengths[-2:]], tokens)


def _bend(lengths: Sequence[int], sizes: Sequence[int]) -> float:
    """Return the coefficient of the square in the parabola through three sizes."""
    (a, b, c), (x, y, z) = lengths, sizes
    return ((z - y) / (c - b) - (y - x) / (b - a)) / (c - a)
