"""Puts packed layers into a model: in the plan's, and in that which `from_pretrained` fills."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from torch import nn
from transformers import PreTrainedModel

from predictor.linear.layers import PackedLayers, PackedMatrix
from predictor.linear.module import PackedLinear
from predictor.mixture.parameters import pack_experts
from predictor.private.conversions import PackedNames, mark_initialized, set_packed_names
from predictor.quantization.quantising import names_to_quantise


def pack_layers(model: PreTrainedModel, layers: PackedLayers) -> None:
    """Replace layers of a model by packed ones, whose parameters are on the meta device.

    Args:
        model: The model, unpacked, on the meta device.
        layers: The packed layers.
    """
    for name, matrix in layers.linears.items():
        linear = model.get_submodule(name)
        bias = linear.bias if isinstance(linear.bias, nn.Parameter) else None
        model.set_submodule(name, PackedLinear(matrix, bias).train(linear.training))
    for name, experts in layers.experts.items():
        pack_experts(model.get_submodule(name), experts)
    for name in (*layers.linears, *layers.experts):
        _mark_initialized(model, name)
    names = names_to_quantise if layers.quantised_to else _names_of_packed
    set_packed_names(model, names(model, layers))


def _mark_initialized(model: PreTrainedModel, name: str) -> None:
    """Keep transformers from drawing weights for a packed module, or for one that it is part of.

    Models draw those of their layers by way of the layers' owners, as T5 does.
    """
    for part in accumulate(name.split("."), "{}.{}".format):
        module = model.get_submodule(part)
        if not isinstance(module, PreTrainedModel):
            mark_initialized(module)


def _names_of_packed(_: PreTrainedModel, layers: PackedLayers) -> PackedNames:
    merged = {
        f"{name}.{key}": tuple(map(_stored_names, parts))
        for name, experts in layers.experts.items()
        for key, parts in experts.parts.items()
        if key in experts.merged
    }
    return PackedNames(merged, _renamed(layers))


def _stored_names(matrix: PackedMatrix) -> Mapping[str, str]:
    return {role.replace(".", "_"): name for role, name in matrix.names.items()}


def _renamed(layers: PackedLayers) -> Mapping[str, str]:
    """Return the roles that cannot be names of parameters, and the names that they have instead."""
    matrices = [*layers.linears.values()]
    for experts in layers.experts.values():
        matrices.extend(experts.matrices)
    roles = {role for matrix in matrices for role in matrix.specs if "." in role}
    return {role: role.replace(".", "_") for role in sorted(roles)}
