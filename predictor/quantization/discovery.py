"""Finds the packed layers of a model, from the names and headers of a checkpoint's files.

What is really in the files decides. A config's rules say in which format a layer is, and which
layers are packed where no file is there yet. No packed tensor is left over in silence: one that no
layer takes is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec, WeightFormat
from predictor.linear.install import is_linear, is_weight_used_by
from predictor.linear.layers import PackedExperts, PackedLayers, PackedMatrix
from predictor.linear.scheme import Scheme
from predictor.mixture.parameters import count_experts, expert_tensors
from predictor.private.experts import uses_experts_interface
from predictor.private.stored_names import CheckpointNames, StoredParameter, stored_parameters
from predictor.quantization.left_over import refuse_left_over
from predictor.quantization.stored import (
    WEIGHT,
    StoredMatrix,
    StoredSpecs,
    gather,
)


def find_packed(model: PreTrainedModel, scheme: Scheme, stored: StoredSpecs) -> PackedLayers:
    """Return the packed layers of a model.

    Args:
        model: The model, unpacked, on the meta device.
        scheme: The format of each layer.
        stored: The tensors of the checkpoint.

    Raises:
        CheckpointError: A layer is packed in a way that is not served, or a tensor is left over.
    """
    names = CheckpointNames(model)
    matrices, others = gather(names, stored)
    dropped = refuse_left_over(stored, matrices, others)
    modules = _experts_modules(model)
    owners = {f"{name}.{key}": name for name, keys in modules.items() for key in keys}
    linears = {
        matrix.parameter.removesuffix(f".{WEIGHT}"): _linear(model, matrix, scheme)
        for matrix in matrices
        if matrix.is_packed and matrix.parameter not in owners
    }
    of_experts = [matrix for matrix in matrices if matrix.parameter in owners]
    experts = _experts(model, names, of_experts, owners, scheme)
    return PackedLayers(scheme.title, linears, experts, dropped)


def find_by_rules(model: PreTrainedModel, scheme: Scheme) -> PackedLayers:
    """Return the layers that a config says are packed, where there are no files yet.

    Heads, and layers that share their weights with others, are not packed as far as the config
    does not name them.

    Args:
        model: The model, unpacked, on the meta device.
        scheme: The format of each layer.

    Raises:
        CheckpointError: A layer cannot be packed in its format.
    """
    stored: dict[str, TensorSpec] = {}
    for begin, leading, rows, columns in _matrices_of(model):
        weight_format = scheme.format_of(begin[:-1], columns)
        if weight_format is not None:
            for role, spec in weight_format.tensors(rows, columns).items():
                stored[begin + role] = TensorSpec(spec.dtype, (*leading, *spec.shape))
    return find_packed(model, scheme, stored)


def _matrices_of(model: PreTrainedModel) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Yield the matrices that a checkpoint may hold packed.

    Yields:
        The name that its tensors begin with, up to their role; the dimensions before those of the
        matrix; its rows and its columns.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if is_linear(module) and module is not head:
            yield f"{name}.", (), module.out_features, module.in_features
    names = CheckpointNames(model)
    for name, keys in _experts_modules(model).items():
        module = model.get_submodule(name)
        for key in keys:
            count, *sides = getattr(module, key).shape
            if len(sides) != 2:
                continue  # a bias
            rows, columns = reversed(sides) if module.is_transposed else sides
            sources = names.merged_from(f"{name}.{key}")
            for before, behind in sources:
                for expert in range(count):
                    stored = f"{before}{expert}{behind.removesuffix(WEIGHT)}"
                    yield stored, (), rows // len(sources), columns
            if not sources:
                yield f"{name}.{key}_", (count,), rows, columns


def _linear(model: PreTrainedModel, matrix: StoredMatrix, scheme: Scheme) -> PackedMatrix:
    module = _owner(model, matrix.parameter)
    if not is_linear(module):
        kind = "no layer" if module is None else f"a {type(module).__name__}"
        raise CheckpointError(
            f"{matrix.name} is packed and is {kind}; only linear layers and experts can be served "
            "packed."
        )
    name, _, key = matrix.parameter.removesuffix(f".{WEIGHT}").rpartition(".")
    if is_weight_used_by(model.get_submodule(name), key):
        raise CheckpointError(
            f"{matrix.name} is packed, and the code of {type(model).__name__} uses its weights "
            "unpacked, so it cannot be served packed."
        )
    weight_format = _format_of(scheme, matrix, module.in_features)
    specs = _accept(weight_format, matrix, matrix.tensors, module.out_features, module.in_features)
    names = {role: role.replace(".", "_") for role in specs}
    return PackedMatrix(weight_format, module.out_features, module.in_features, specs, names)


def _owner(model: PreTrainedModel, parameter: str) -> nn.Module | None:
    name, _, key = parameter.rpartition(".")
    return model.get_submodule(name) if key == WEIGHT else None


def _format_of(scheme: Scheme, matrix: StoredMatrix, columns: int) -> WeightFormat:
    weight_format = scheme.format_of(matrix.name, columns)
    if weight_format is None:
        raise CheckpointError(
            f"{matrix.name} is packed, which the checkpoint's config does not say; its tensors are "
            f"{', '.join(sorted(matrix.tensors))}."
        )
    return weight_format


def _accept(
    weight_format: WeightFormat,
    matrix: StoredMatrix,
    tensors: Mapping[str, TensorSpec],
    rows: int,
    columns: int,
) -> dict[str, TensorSpec]:
    try:
        return weight_format.accept(tensors, rows, columns)
    except CheckpointError as error:
        text = str(error).rstrip(".")
        raise CheckpointError(f"{matrix.name}, packed as {weight_format.title}, {text}.") from None


def _experts_modules(model: PreTrainedModel) -> dict[str, list[str]]:
    """Return the keys of the parameters of all experts, by the names of their modules."""
    return {
        name: list(expert_tensors(module))
        for name, module in model.named_modules()
        if uses_experts_interface(module)
    }


def _experts(
    model: PreTrainedModel,
    names: CheckpointNames,
    matrices: Sequence[StoredMatrix],
    owners: Mapping[str, str],
    scheme: Scheme,
) -> dict[str, PackedExperts]:
    packed = [matrix for matrix in matrices if matrix.is_packed]
    if not packed:
        return {}
    by_name = {matrix.weight_name: matrix for matrix in matrices}
    sources = stored_parameters(names, by_name, owners.__contains__)
    lost = {matrix.parameter for matrix in packed} - sources.keys()
    if lost:
        raise CheckpointError(
            f"{min(lost)} is packed, and transformers computes it of several stored tensors, which "
            "cannot be done to packed ones."
        )
    experts: dict[str, dict[str, tuple[PackedMatrix, ...]]] = {}
    for parameter, source in sources.items():
        parts = _parts(model, parameter, source, by_name, scheme)
        if parts:
            module, _, key = parameter.rpartition(".")
            experts.setdefault(module, {})[key] = parts
    plain = set(owners.values()) - experts.keys()
    if plain:
        raise CheckpointError(
            f"The experts of {min(plain)} are not packed, as those of other layers are; such a "
            "mixture cannot be served."
        )
    return {
        name: PackedExperts(
            count_experts(model.get_submodule(name)),
            parts,
            frozenset(key for key in parts if sources[f"{name}.{key}"].is_merged),
        )
        for name, parts in experts.items()
    }


def _parts(
    model: PreTrainedModel,
    parameter: str,
    source: StoredParameter,
    by_name: Mapping[str, StoredMatrix],
    scheme: Scheme,
) -> tuple[PackedMatrix, ...]:
    """Return the matrices that make up a parameter of experts; none if it is not packed."""
    columns = [[by_name[name] for name in part] for part in source.parts]
    if not any(matrix.is_packed for column in columns for matrix in column):
        return ()
    name, _, key = parameter.rpartition(".")
    module = model.get_submodule(name)
    _, rows, inputs = model.get_parameter(parameter).shape
    if module.is_transposed:
        rows, inputs = inputs, rows
    return tuple(
        _part(column, key, rows // len(columns), inputs, scheme, is_merged=source.is_merged)
        for column in columns
    )


def _part(
    column: Sequence[StoredMatrix],
    key: str,
    rows: int,
    columns: int,
    scheme: Scheme,
    *,
    is_merged: bool,
) -> PackedMatrix:
    """Return the matrix that an expert has; those of all experts have the same tensors.

    Args:
        column: The stored matrix of each expert, or that of all.
        key: The unpacked parameter's own name.
        rows: Its outputs.
        columns: Its inputs.
        scheme: The format of each layer.
        is_merged: Whether transformers merges a matrix for each expert.
    """
    first = column[0]
    other = next((matrix for matrix in column if matrix.tensors != first.tensors), None)
    if other is not None:
        raise CheckpointError(
            f"{other.name} is packed in another way than {first.name}, or its tensors have other "
            "sizes; experts of a layer are served if they are alike."
        )
    tensors = first.tensors if is_merged else _entries(first)
    weight_format = _format_of(scheme, first, columns)
    specs = _accept(weight_format, first, tensors, rows, columns)
    if is_merged:
        own = first.name.rpartition(".")[2]
        names = {role: f"{own}_{role.replace('.', '_')}" for role in specs}
    else:
        names = {role: key if role == WEIGHT else _joined(key, role, first) for role in specs}
    return PackedMatrix(weight_format, rows, columns, specs, names)


def _entries(matrix: StoredMatrix) -> dict[str, TensorSpec]:
    """Return the tensors of one expert, by the roles that they have in a layer."""
    return {
        _role_in_layer(role, matrix): TensorSpec(spec.dtype, spec.shape[1:])
        for role, spec in matrix.tensors.items()
    }


def _role_in_layer(role: str, matrix: StoredMatrix) -> str:
    """Return ``weight_scale`` for the ``scale`` of a parameter that is itself the weights."""
    is_named = role.startswith(WEIGHT) or WEIGHT not in matrix.tensors
    return role if is_named else f"{WEIGHT}_{role}"


def _joined(key: str, role: str, matrix: StoredMatrix) -> str:
    return f"{key}_{role.removeprefix(f'{WEIGHT}_') if WEIGHT in matrix.tensors else role}"
