"""Packs the layers of a checkpoint that is not quantised, while it is loaded.

Linear layers of blocks and experts are packed. Embeddings, heads, norms and routers stay: they are
few bytes, and errors in them cost most. For the same reason the small layers of a block, such as
keys and values that many queries share, are packed in 8 bits where the others get 4.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.errors import CheckpointError, ConfigurationError
from predictor.linear.formats.int4 import Int4
from predictor.linear.formats.int8 import Int8
from predictor.linear.install import is_linear, is_weight_used_by
from predictor.linear.layers import PackedExperts, PackedLayers, PackedMatrix
from predictor.mixture.parameters import expert_tensors
from predictor.pod.processors import read_processors
from predictor.private.conversions import PackedNames, QuantisedNames
from predictor.private.experts import uses_experts_interface
from predictor.private.stored_names import CheckpointNames
from predictor.quantization.stored import WEIGHT

OwnFormat = Int8 | Int4

_T = TypeVar("_T")

_ROUTERS = ("gate", "router", "shared_expert_gate", "wg")
"""Names of linear layers that choose experts, or weigh them."""

_SMALL = 1 / 16
"""Most weights of a layer that int4 leaves at int8, as a fraction of its block's linear layers."""

_CHUNK = 128 * 1024
"""Weights that are packed at one time: in float32 they take 512 KiB, which stay in a processor's
cache while many operations go over them."""

_MOST_THREADS = 4
"""Threads that pack. Each takes up to 24 MB, of 28,672 inputs, which the memory reserve has."""

_ROWS = 64
"""Rows that are packed at one time are a multiple of this, since int4 has panels of 32 or 64."""


def layers_to_quantise(
    model: PreTrainedModel, blocks: Sequence[str], weights_dtype: str
) -> PackedLayers:
    """Return the layers of a model that are packed while it is loaded.

    Args:
        model: The model, unpacked, on the meta device.
        blocks: The names of its blocks.
        weights_dtype: ``"int8"`` or ``"int4"``. Small layers, and those whose shape int4 does not
            have, get int8.

    Raises:
        ConfigurationError: The model has no layer that can be packed.
    """
    preferred = Int4.here() if weights_dtype == "int4" else Int8()
    names, experts = CheckpointNames(model), {}
    linears: dict[str, nn.Linear] = {}
    for name, module in _modules(model, blocks):
        if isinstance(module, nn.Linear):
            if not names.is_converted(f"{name}.{WEIGHT}"):
                linears[name] = module
        else:
            experts[name] = _experts(names, name, module, preferred)
    if not (linears or experts):
        raise ConfigurationError(
            f"weights_dtype {weights_dtype} cannot be had: the blocks of this model have no linear "
            "layers."
        )
    small = set(_small(linears, blocks))
    matrices = _matrices(linears, small, preferred, model.base_model_prefix)
    each = [*matrices.values(), *(m for packed in experts.values() for m in packed.matrices)]
    titles = dict.fromkeys(matrix.format.title for matrix in each)
    title = ", ".join(sorted(titles, key=preferred.title.__ne__))
    return PackedLayers(title, matrices, experts, quantised_to=_key(preferred))


def _key(preferred: OwnFormat) -> str:
    """Return the layout of the layers, which is another if `_SMALL` is."""
    return preferred.key if isinstance(preferred, Int8) else f"{preferred.key}-{round(1 / _SMALL)}"


def _small(linears: Mapping[str, nn.Linear], blocks: Sequence[str]) -> Iterator[str]:
    """Yield the names of layers that have few of the weights of their block."""
    for block in blocks:
        inside = {n: one.weight.numel() for n, one in linears.items() if n.startswith(f"{block}.")}
        most = _SMALL * sum(inside.values())
        yield from (name for name, weights in inside.items() if weights <= most)


def _matrices(
    linears: Mapping[str, nn.Linear], small: Collection[str], preferred: OwnFormat, base: str
) -> dict[str, PackedMatrix]:
    """Return the matrix of each layer; layers in one location of their blocks have one format."""
    formats: dict[_Location, OwnFormat] = {}
    locations = {name: _Location.of(name, base) for name in linears}
    for name, linear in linears.items():
        weights = _format_for(preferred, linear.out_features, linear.in_features)
        weights = Int8() if name in small else weights
        if formats.setdefault(locations[name], weights) != weights:
            formats[locations[name]] = Int8()
    return {
        name: _matrix(formats[locations[name]], linear.out_features, linear.in_features, "")
        for name, linear in linears.items()
    }


def _modules(model: PreTrainedModel, blocks: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers and the experts of blocks, by name."""
    owners: dict[int, int] = {}
    for parameter in dict(model.named_parameters(remove_duplicate=False)).values():
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for block in blocks:
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            if uses_experts_interface(module):
                yield name, module
            elif is_linear(module):
                owner, _, key = name.rpartition(".")
                is_used = is_weight_used_by(model.get_submodule(owner), key)
                is_shared = owners[id(module.weight)] > 1
                if not (is_shared or is_used or key in _ROUTERS):
                    yield name, module


def _format_for(preferred: OwnFormat, rows: int, columns: int) -> OwnFormat:
    """Return the preferred format, or int8 if that has no matrix of this shape."""
    try:
        preferred.tensors(rows, columns)
    except CheckpointError:
        return Int8()
    return preferred


def _matrix(weights: OwnFormat, rows: int, columns: int, prefix: str) -> PackedMatrix:
    """Return a matrix, whose parameters' names begin with a prefix."""
    specs = weights.tensors(rows, columns)
    names = {role: f"{prefix}{role}" for role in specs}
    return PackedMatrix(weights, rows, columns, specs, names)


def _experts(names: CheckpointNames, name: str, module: Any, preferred: OwnFormat) -> PackedExperts:
    parts, count = {}, 0
    for key, tensor in expert_tensors(module).items():
        if tensor.dim() != 3:
            continue  # a bias
        count, *sides = tensor.shape
        rows, columns = reversed(sides) if module.is_transposed else sides
        sources = names.merged_from(f"{name}.{key}")
        own = [behind.split(".")[1] for _, behind in sources] or [key]
        rows //= len(own)
        weights = _format_for(preferred, rows, columns)
        parts[key] = tuple(_matrix(weights, rows, columns, f"{part}_") for part in own)
    return PackedExperts(count, parts)


def names_to_quantise(model: PreTrainedModel, layers: PackedLayers) -> PackedNames:
    """Return the names of layers that are packed while they are loaded.

    Args:
        model: The model, whose layers are packed already.
        layers: These layers.
    """
    names = CheckpointNames(model)
    quantised: dict[Any, QuantisedNames] = {}
    merged: dict[str, tuple[Mapping[str, str], ...]] = {}
    for name, matrix in layers.linears.items():
        location = _Location.of(name, model.base_model_prefix)
        quantised.setdefault(location, location.names(r"\.weight", matrix, _pack_one))
    for name, experts in layers.experts.items():
        location = _Location.of(name, model.base_model_prefix)
        module: Any = model.get_submodule(name)
        for key, parts in experts.parts.items():
            sources = names.merged_from(f"{name}.{key}")
            merged[f"{name}.{key}"] = tuple({} for _ in sources)
            if not sources:
                pack = partial(_pack_merged, is_transposed=module.is_transposed)
                quantised.setdefault((location, key), location.names(rf"\.{key}", parts[0], pack))
            for matrix, (before, behind) in zip(parts, sources, strict=bool(sources)):
                inner = f"{before.removeprefix(name)}*{behind}"
                quantised.setdefault((location, inner), location.names(inner, matrix, _pack_each))
    return PackedNames(merged, quantised=tuple(quantised.values()))


@dataclass(frozen=True, slots=True)
class _Location:
    """The location of a module in every block.

    Attributes:
        blocks: The pattern of the names of blocks, as checkpoints and the model have them.
        module: The name of the module within its block, with a dot before it.
    """

    blocks: str
    module: str

    @classmethod
    def of(cls, name: str, base: str) -> _Location:
        """Return the location of a module; checkpoints may lack the base model's prefix."""
        match = re.match(rf"(?:{re.escape(base)}\.)?(.*?)\.\d+(\..*)", name)
        if match is None:
            raise LookupError(f"{name} is in no block")
        return cls(rf"(?:{re.escape(base)}\.)*{re.escape(match[1])}\.\d+", match[2])

    def names(self, stored: str, matrix: PackedMatrix, pack: Callable[..., Any]) -> QuantisedNames:
        """Return the names of a matrix of the module.

        Args:
            stored: The pattern of what stored names have behind the module's.
            matrix: The matrix in any block.
            pack: Packs stored tensors in a format.
        """
        own = {role: rf"\1{self.module}.{name}" for role, name in matrix.names.items()}
        pattern = rf"^({self.blocks}){re.escape(self.module)}{stored}"
        return QuantisedNames(pattern, own, partial(pack, matrix.format))


def _pack_one(weights: OwnFormat, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a matrix, which is one stored tensor."""
    return {role: packed[0] for role, packed in _pack_each(weights, tensors).items()}


def _pack_each(weights: OwnFormat, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of all experts, each of which is one stored tensor.

    They are packed a few rows at a time. On the meta device they are only allocated, since a store
    has them.
    """
    first, count = tensors[0], len(tensors)
    rows, columns = first.shape
    packed = {
        role: torch.empty((count, *spec.shape), dtype=spec.dtype, device=first.device)
        for role, spec in weights.tensors(rows, columns).items()
    }
    step = max(1, _CHUNK // (_ROWS * columns)) * _ROWS

    def fill(chunk: tuple[int, int]) -> None:
        expert, begin = chunk
        part = tensors[expert][begin : begin + step]
        for role, values in weights.quantise(part).items():
            packed[role][expert].narrow(weights.axes[role], begin, len(part)).copy_(values)

    if not first.is_meta:
        _run_in_threads(fill, list(itertools.product(range(count), range(0, rows, step))))
    return packed


def _pack_merged(
    weights: OwnFormat, tensors: Sequence[torch.Tensor], *, is_transposed: bool
) -> dict[str, torch.Tensor]:
    """Return the tensors of all experts, which are one stored tensor."""
    experts = tensors[0].unbind()
    return _pack_each(weights, [tensor.T for tensor in experts] if is_transposed else experts)


def _run_in_threads(work: Callable[[_T], None], items: Sequence[_T]) -> None:
    """Work on items, each in one thread; torch's own threads wait for each other at every step."""
    before = torch.get_num_threads()
    processors = read_processors(cgroup_root=Path("/sys/fs/cgroup"), proc=Path("/proc"))
    threads = min(processors, _MOST_THREADS, len(items))
    single = partial(torch.set_num_threads, 1)
    try:
        with ThreadPoolExecutor(threads, "quantising", initializer=single) as pool:
            list(pool.map(work, items))
    finally:
        torch.set_num_threads(before)  # each thread has set it for those to come
