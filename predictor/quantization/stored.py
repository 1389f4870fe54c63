"""The stored tensors of a checkpoint, gathered by the matrix of weights that they belong to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from predictor.checkpoint.safetensors_header import read_header
from predictor.checkpoint.weight_files import StoredWeights
from predictor.dtypes import BY_CODE
from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.private.stored_names import CheckpointNames

StoredSpecs = Mapping[str, TensorSpec]
"""The tensors of a checkpoint by their names."""

WEIGHT = "weight"
"""The role of weights that are not packed, and of packed ones in some formats."""

CACHE_SCALES = frozenset(["k_scale", "v_scale", "q_scale", "kv_scale", "prob_output_scale"])
"""Scales of attention's inputs, for caches of 8 bits; here these are kept in the serving dtype."""

_LEVELS = 3
"""Most names behind a layer's name in that of a tensor, as in ``weight.quant_state.nf4``."""


def read_specs(weights: StoredWeights, *, is_quantised: bool) -> StoredSpecs:
    """Return the tensors of a checkpoint's safetensors files.

    Args:
        weights: The files.
        is_quantised: Whether the checkpoint says that it is quantised. Of others, tensors in dtypes
            that torch does not have are left out, as they are by transformers.

    Raises:
        CheckpointError: A tensor has a dtype that torch does not have.
    """
    return dict(_specs(weights, is_quantised=is_quantised))


def _specs(weights: StoredWeights, *, is_quantised: bool) -> Iterator[tuple[str, TensorSpec]]:
    for file in weights.files:
        for name, entry in read_header(file).items():
            dtype = BY_CODE.get(entry["dtype"])
            if dtype is None and not is_quantised:
                continue
            if dtype is None:
                raise CheckpointError(
                    f"{name} in {file} is stored in {entry['dtype']}, which cannot be served."
                )
            yield name, TensorSpec(getattr(torch, dtype.name), tuple(entry["shape"]))


def is_plain(spec: TensorSpec) -> bool:
    """Return whether a tensor can be a weight that is not packed."""
    return spec.dtype.is_floating_point and spec.dtype.itemsize > 1


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """The stored tensors of one matrix of weights.

    Attributes:
        name: The stored name of the layer, or of the parameter of all experts.
        parameter: The parameter that the matrix is, or is part of, in the unpacked model.
        tensors: The tensors by their roles, those of biases excluded.
        joint: What stands between the name and a role: ``"."``, or ``"_"`` if the name is that of
            a parameter.
    """

    name: str
    parameter: str
    joint: str
    tensors: dict[str, TensorSpec] = field(default_factory=dict)

    @property
    def is_packed(self) -> bool:
        """Whether it is more than one tensor of weights as models compute with them."""
        roles = self.tensors.keys() - CACHE_SCALES
        return roles != {WEIGHT} or not is_plain(self.tensors[WEIGHT])

    @property
    def weight_name(self) -> str:
        """The stored name that the matrix has in an unpacked checkpoint."""
        return f"{self.name}.{WEIGHT}" if self.joint == "." else self.name


def gather(names: CheckpointNames, stored: StoredSpecs) -> tuple[list[StoredMatrix], list[str]]:
    """Return the matrices of a checkpoint, and the names of tensors that are of none.

    Args:
        names: The names of the unpacked model's parameters.
        stored: The tensors of the checkpoint.
    """
    lookup = functools.cache(lambda name: names.parameter(name)[0])
    matrices: dict[str, StoredMatrix] = {}
    others = []
    for name, spec in stored.items():
        place = _place(name, lookup)
        if place is None:
            others.append(name)
            continue
        owner, role, joint, parameter = place
        matrix = matrices.setdefault(owner, StoredMatrix(owner, parameter, joint))
        matrix.tensors[role] = spec
    return list(matrices.values()), others


def _place(name: str, lookup: Callable[[str], str | None]) -> tuple[str, str, str, str] | None:
    """Return the layer of a tensor, its role there, the joint, and the unpacked parameter."""
    parameter = lookup(name)
    if parameter is not None:
        layer, _, role = name.rpartition(".")
        return (layer, role, ".", parameter) if role == WEIGHT else (name, WEIGHT, "_", parameter)
    for layer, role in _splits(name, "."):
        parameter = lookup(f"{layer}.{WEIGHT}")
        if parameter is not None:
            return layer, role, ".", parameter
    for key, role in _splits(name, "_"):
        parameter = lookup(key)
        if parameter is not None:
            return key, role, "_", parameter
    return None


def _splits(name: str, joint: str) -> Iterator[tuple[str, str]]:
    """Yield both sides of a name, the shortest right side first."""
    left, right = name, ""
    for _ in range(_LEVELS):
        left, separator, part = left.rpartition(joint)
        if not separator or (joint == "_" and "." in part):
            return
        right = f"{part}{joint}{right}" if right else part
        yield left, right
