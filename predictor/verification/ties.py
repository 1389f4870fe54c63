"""Which parameters that a config ties are stored with other values, and so are not tied.

transformers ties two parameters that are both stored if they are equal in the serving dtype, and
otherwise keeps both (`tie_weights` in ``modeling_utils.py``). It finds out while it loads them. The
plan has to know it before, so both are compared here, up to the first difference: two that are
equal are read whole, in pieces that are mapped and not kept. Nothing is read of checkpoints that
store a tied pair once, as nearly all do.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.private.stored_names import CheckpointNames
from predictor.private.torch import parameter_slot
from predictor.private.transformers import tied_names
from predictor.verification.tensors import StoredTensors

_ELEMENTS = 2**22
"""Elements of both tensors that are compared at one time."""


def separate_ties(model: PreTrainedModel, stored: StoredTensors) -> frozenset[str]:
    """Give a model parameters of their own where tied ones are stored with other values.

    Args:
        model: The model, on the meta device.
        stored: The stored tensors.

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
        and not _is_equal(stored, sources[target], sources[source], model.dtype)
    )
    for name in separate:
        own, key = parameter_slot(model, name)
        parameter_ = own[key]
        if parameter_ is not None:
            own[key] = nn.Parameter(torch.empty_like(parameter_), requires_grad=False)
    return separate


def _is_equal(stored: StoredTensors, one: str, other: str, dtype: torch.dtype) -> bool:
    """Return whether two tensors are equal in the dtype that they are served in."""
    if stored.specs[one].shape != stored.specs[other].shape:
        return False
    first, second = (stored.tensor(name).flatten() for name in (one, other))
    if first.data_ptr() == second.data_ptr():
        return True
    return all(
        torch.equal(
            first[start : start + _ELEMENTS].to(dtype), second[start : start + _ELEMENTS].to(dtype)
        )
        for start in range(0, first.numel(), _ELEMENTS)
    )
