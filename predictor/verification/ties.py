"""Which parameters that a config ties are stored with other values, and so are not tied.

transformers ties two parameters that are both stored if they are equal in the serving dtype, and
otherwise keeps both (`tie_weights` in ``modeling_utils.py``). It finds out while it loads them. The
plan has to know it before, so both are compared here, up to the first difference. A server, which
reads all weights anyway, compares two that are equal to the end, in pieces that are mapped and not
kept. A plan alone compares samples of a few MiB: whole embeddings would take minutes from a disk on
the network. Nothing is read of checkpoints that store a tied pair once, as nearly all do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.private.stored_names import CheckpointNames
from predictor.private.torch import parameter_slot
from predictor.private.transformers import tied_names
from predictor.quantity import format_bytes
from predictor.verification.tensors import StoredTensors

logger = logging.getLogger(__name__)

_ELEMENTS = 2**22
"""Elements of both tensors that are compared at one time."""

_SAMPLES, _SAMPLE = 64, 2**16
"""Samples of each tensor that a plan compares, and the elements of a sample: 8 MiB in bfloat16. The
first and the last rows are among them, as new tokens have the last ones."""


def separate_ties(
    model: PreTrainedModel, stored: StoredTensors, *, samples: bool = False
) -> frozenset[str]:
    """Give a model parameters of their own where tied ones are stored with other values.

    Args:
        model: The model, on the meta device.
        stored: The stored tensors.
        samples: Whether two tensors count as equal if samples of them are.

    Returns:
        The names of these parameters.
    """
    ties = tied_names(model)
    if not ties:
        return frozenset()
    names = CheckpointNames(model)
    sources: dict[str, str] = {}
    for name in stored.specs:
        parameter, pattern = names.parameter(name)
        if parameter is not None and pattern is None:
            sources.setdefault(parameter, name)
    separate = frozenset(
        target
        for target, source in ties.items()
        if target in sources
        and source in sources
        and not _is_equal(stored, sources[target], sources[source], model.dtype, samples)
    )
    for name in separate:
        own, key = parameter_slot(model, name)
        parameter_ = own[key]
        if parameter_ is not None:
            own[key] = nn.Parameter(torch.empty_like(parameter_), requires_grad=False)
    return separate


def _is_equal(
    stored: StoredTensors, one: str, other: str, dtype: torch.dtype, samples: bool
) -> bool:
    """Return whether two tensors are equal in the dtype that they are served in."""
    if stored.specs[one].shape != stored.specs[other].shape:
        return False
    first, second = (stored.tensor(name).flatten() for name in (one, other))
    if first.data_ptr() == second.data_ptr():
        return True
    if not samples:
        size = format_bytes(first.nbytes + second.nbytes)
        logger.info("Comparing %s with %s, which should be the same: %s", one, other, size)
    spans = (_samples if samples else _pieces)(first.numel())
    return all(torch.equal(first[span].to(dtype), second[span].to(dtype)) for span in spans)


def _pieces(count: int) -> Iterator[slice]:
    """Yield pieces that cover so many elements."""
    for start in range(0, count, _ELEMENTS):
        yield slice(start, start + _ELEMENTS)


def _samples(count: int) -> Iterator[slice]:
    """Yield samples evenly spread over so many elements; pieces if they are not many more."""
    if count <= _SAMPLES * _SAMPLE:
        yield from _pieces(count)
        return
    for index in range(_SAMPLES):
        start = (count - _SAMPLE) * index // (_SAMPLES - 1)
        yield slice(start, start + _SAMPLE)
