"""The parameters of an experts module, plain or packed: which they are, and what they hold.

transformers' modules keep all experts in ``gate_up_proj`` (or ``up_proj``) and ``down_proj``. A
packed module keeps each of these in one matrix or several, and each matrix in a few tensors.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from predictor.linear.layers import PackedExperts, PackedMatrix

_PACKED = "packed_experts"
"""The attribute of an experts module that is its `PackedExperts`."""


def pack_experts(module: nn.Module, experts: PackedExperts) -> None:
    """Replace the parameters of an experts module by packed ones on the meta device."""
    for key in experts.parts:
        delattr(module, key)
    for matrix in experts.matrices:
        for name, parameter in matrix.parameters(experts.count).items():
            module.register_parameter(name, parameter)
    setattr(module, _PACKED, experts)


def expert_tensors(module: Any) -> dict[str, torch.Tensor]:
    """Return the parameters of an experts module that have an entry for each expert, by name."""
    return {name: module.get_parameter(name) for name in _parameter_names(module)}


def input_width(module: Any) -> int:
    """Return the width of the hidden states that an experts module takes."""
    parts = packed_parts(module, first_name(module))
    if parts:
        return parts[0].in_features
    first, *_ = expert_tensors(module).values()
    width: int = first.shape[1 if module.is_transposed else 2]
    return width


def _parameter_names(module: Any) -> tuple[str, ...]:
    names = (first_name(module), "down_proj")
    weights = tuple(chain.from_iterable(_own_names(module, name) for name in names))
    return (*weights, *(f"{name}_bias" for name in names)) if module.has_bias else weights


def first_name(module: Any) -> str:
    """Return the name of the unpacked parameter that takes the hidden states."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def _own_names(module: Any, name: str) -> tuple[str, ...]:
    """Return the names of the parameters that hold an unpacked parameter of this name."""
    parts = packed_parts(module, name)
    return tuple(own for part in parts for own in part.names.values()) if parts else (name,)


def packed_parts(module: Any, name: str) -> tuple[PackedMatrix, ...]:
    """Return the packed matrices that make up an unpacked parameter; none if it is not packed."""
    packed: PackedExperts | None = getattr(module, _PACKED, None)
    return () if packed is None else packed.parts.get(name, ())


def holds_experts_alone(module: Any) -> bool:
    """Return whether every tensor that computes experts has an entry for each of them.

    Then an expert computes on any device. The norm of outputs stays where the module is.
    """
    own = {*_parameter_names(module)}
    state = module.state_dict(keep_vars=True)
    return all(name in own or name.startswith("post_expert_norm.") for name in state)


def count_experts(module: Any) -> int:
    """Return the number of a module's experts."""
    first, *_ = _parameter_names(module)
    count: int = module.get_parameter(first).shape[0]
    return count
