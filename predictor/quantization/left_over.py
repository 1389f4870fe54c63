"""Tensors of a checkpoint that no layer of the model takes: dropped by name, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

import torch

from predictor.errors import CheckpointError
from predictor.quantization.stored import CACHE_SCALES, StoredMatrix, StoredSpecs, is_plain

_BUFFERS = (torch.bool, torch.int64)
"""Dtypes of masks and positions, which models compute anew, and never of packed weights."""


def refuse_left_over(
    stored: StoredSpecs, matrices: Iterable[StoredMatrix], others: Iterable[str]
) -> tuple[str, ...]:
    """Return the layers of packed tensors that the model lacks.

    Raises:
        CheckpointError: A packed tensor or a scale belongs to a module of the model, and nothing
            takes it.
    """
    modules = {name for matrix in matrices for name in _with_ancestors(matrix.name)}
    dropped: dict[str, None] = {}
    for name in others:
        module, _, role = name.rpartition(".")
        spec = stored[name]
        if spec.dtype in _BUFFERS or (is_plain(spec) and "scale" not in role):
            continue
        if module not in modules:
            dropped.setdefault(_first_missing(name, modules))
        elif role not in CACHE_SCALES and not role.endswith("bias"):
            raise CheckpointError(
                f"Nothing in the model takes the tensor {name}, which is needed to unpack weights "
                "if it is part of a quantised layer."
            )
    return tuple(dropped)


def _with_ancestors(name: str) -> Iterator[str]:
    yield from accumulate(name.split("."), "{}.{}".format)


def _first_missing(name: str, modules: set[str]) -> str:
    """Return the outermost module of a tensor that the model lacks."""
    return next(prefix for prefix in _with_ancestors(name) if prefix not in modules)
