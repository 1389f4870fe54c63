"""Combinations of parameters, of which most run with ``--full-grid`` alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest


def thinned(
    *axes: Sequence[Any], also: Callable[..., bool] = lambda *_: False
) -> list[pytest.ParameterSet]:
    """Return every combination for ``parametrize``, most of them marked ``full_grid``.

    The others have every value of every axis at least once: the values of the shorter axes take
    turns along the longest.

    Args:
        axes: The values of each parameter.
        also: Whether a combination runs without ``--full-grid`` too.
    """
    turns = range(max(map(len, axes)))
    always = {tuple(turn % len(axis) for axis in axes) for turn in turns}
    combinations = []
    for indices in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[index] for axis, index in zip(axes, indices, strict=True)]
        runs = indices in always or also(*values)
        combinations.append(pytest.param(*values, marks=() if runs else pytest.mark.full_grid))
    return combinations
