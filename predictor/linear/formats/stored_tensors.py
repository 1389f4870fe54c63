"""Checks of the tensors that a checkpoint stores for a layer, shared by the formats.

The sentences leave their subject, the layer, to the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes in which scales are published, unless a format has its own."""

Shape = tuple[int, ...]


def expect(
    stored: Mapping[str, TensorSpec],
    role: str,
    dtypes: Collection[torch.dtype],
    shapes: Collection[Shape],
) -> TensorSpec:
    """Return the stored tensor of a role.

    Args:
        stored: The stored tensors by their roles.
        role: The role of the tensor.
        dtypes: The dtypes that it may have.
        shapes: The shapes that it may have, the usual one first.

    Raises:
        CheckpointError: It is not stored, or in another dtype or shape.
    """
    if role not in stored:
        raise CheckpointError(f"has no tensor {role!r}")
    spec = stored[role]
    if spec.dtype not in dtypes:
        expected = _or(str(dtype).removeprefix("torch.") for dtype in dtypes)
        kind = str(spec.dtype).removeprefix("torch.")
        raise CheckpointError(f"has a tensor {role!r} of dtype {kind} instead of {expected}")
    if spec.shape not in shapes:
        expected = _or(str(shape) for shape in shapes)
        raise CheckpointError(f"has a tensor {role!r} of shape {spec.shape} instead of {expected}")
    return spec


def one_role(stored: Mapping[str, object], roles: Collection[str]) -> str:
    """Return the role of several alternatives that is stored.

    Raises:
        CheckpointError: None of them is stored.
    """
    for role in roles:
        if role in stored:
            return role
    raise CheckpointError(f"has no tensor {_or(repr(role) for role in roles)}")


def accept_usual(
    stored: Mapping[str, TensorSpec],
    usual: Mapping[str, TensorSpec],
    ignored: Collection[str],
    *,
    scales: Collection[str] = (),
) -> dict[str, TensorSpec]:
    """Return the stored tensors that are served, all of which have their usual shapes.

    Args:
        stored: The stored tensors by their roles.
        usual: The tensors as they are usually published, by their roles.
        ignored: Roles that may be stored and are not needed.
        scales: Roles of tensors that may have another floating dtype than the usual one.

    Raises:
        CheckpointError: One is missing or unlike the usual one, or there is another.
    """
    served = {
        role: expect(stored, role, FLOATS if role in scales else (spec.dtype,), [spec.shape])
        for role, spec in usual.items()
    }
    refuse_others(stored, served, ignored)
    return served


def refuse_others(
    stored: Mapping[str, TensorSpec], served: Collection[str], ignored: Collection[str]
) -> None:
    """Check that every stored tensor is served or known to be needless.

    Raises:
        CheckpointError: One is neither.
    """
    for role in stored:
        if role not in served and role not in ignored:
            raise CheckpointError(f"has a tensor {role!r}, which is not part of its format")


def ceil_div(count: int, size: int) -> int:
    """Return how many pieces of a size hold a count, the last one perhaps in part."""
    return -(-count // size)


def _or(words: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(words))
