"""Cut a model on the meta device into placement units, and count the bytes of their weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.mixture.modules import find_experts
from predictor.placement.units import Experts, PlacementUnit
from predictor.private.torch import own_buffers, own_parameters
from predictor.profiling.probe import Probe


def measure_units(
    model: PreTrainedModel, blocks: tuple[str, ...], probed: Probe, *, with_experts: bool
) -> tuple[PlacementUnit, ...]:
    """Return the units of a model: first those outside of blocks, then the blocks.

    Args:
        model: The model on the meta device.
        blocks: The names of its blocks.
        probed: The measured sizes of the KV cache.
        with_experts: Whether experts can be read by themselves.
    """
    order = {name: index for index, name in enumerate(blocks)}
    stored = frozenset(model.state_dict())
    modules = find_experts(model, blocks) if with_experts else {}
    experts = {block: module.placed for block, module in modules.items()}
    parts = [
        _measure(model, name, order.get(name), probed, stored, experts.get(name))
        for name in _cut(model, "", order)
    ]
    units = _merge_tied(parts)
    return tuple(sorted(units, key=lambda u: (u.block is not None, u.block or 0, u.weights)))


def _cut(model: nn.Module, name: str, blocks: dict[str, int]) -> Iterator[str]:
    """Yield the names of the blocks, the largest modules without blocks, and single tensors."""
    if name in blocks or not any(block.startswith(f"{name}." if name else "") for block in blocks):
        yield name
        return
    module = model.get_submodule(name)
    prefix = f"{name}." if name else ""
    single = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    yield from (prefix + key for key, _ in single)
    for child, _ in module.named_children():
        yield from _cut(model, prefix + child, blocks)


@dataclass(frozen=True, slots=True)
class _Part:
    """A unit, and the bytes of its parameters by their identity, which tied weights share."""

    unit: PlacementUnit
    parameters: dict[int, int]


def _measure(
    model: PreTrainedModel,
    name: str,
    block: int | None,
    probed: Probe,
    stored: frozenset[str],
    experts: Experts | None,
) -> _Part:
    parameters, buffers = _tensors(model, name)
    unit = PlacementUnit(
        names=(name,),
        block=block,
        weights=_bytes(parameters.values())
        + _bytes(tensor for key, tensor in buffers.items() if key in stored),
        buffers=_bytes(tensor for key, tensor in buffers.items() if key not in stored),
        largest_leaf=_largest_leaf(model, name),
        kv_per_token=probed.kv_per_token[block] if block is not None else 0,
        kv_fixed=probed.kv_fixed[block] if block is not None else 0,
        kv_windowed=probed.kv_windowed[block] if block is not None and probed.window else 0,
        experts=experts,
    )
    return _Part(unit, {id(tensor): tensor.nbytes for tensor in parameters.values()})


def _tensors(
    model: nn.Module, name: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    owner, _, key = name.rpartition(".")
    holder = model.get_submodule(owner)
    if key in own_parameters(holder):
        return {name: model.get_parameter(name)}, {}
    if key in own_buffers(holder):
        return {}, {name: model.get_buffer(name)}
    module, prefix = model.get_submodule(name), f"{name}." if name else ""
    return (
        {prefix + key: tensor for key, tensor in module.named_parameters()},
        {prefix + key: tensor for key, tensor in module.named_buffers()},
    )


def _merge_tied(parts: list[_Part]) -> list[PlacementUnit]:
    """Join parts that share parameters, and count the shared ones once."""
    merged: list[_Part] = []
    for part in parts:
        twins = [other for other in merged if other.parameters.keys() & part.parameters.keys()]
        merged = [other for other in merged if other not in twins]
        merged.append(functools.reduce(_join, [*twins, part]))
    return [part.unit for part in merged]


def _join(first: _Part, second: _Part) -> _Part:
    a, b = first.unit, second.unit
    blocks = [block for block in (a.block, b.block) if block is not None]
    shared = sum(size for key, size in second.parameters.items() if key in first.parameters)
    unit = PlacementUnit(
        names=a.names + b.names,
        block=min(blocks) if len(blocks) == 2 else None,
        weights=a.weights + b.weights - shared,
        buffers=a.buffers + b.buffers,
        largest_leaf=max(a.largest_leaf, b.largest_leaf),
        kv_per_token=a.kv_per_token + b.kv_per_token,
        kv_fixed=a.kv_fixed + b.kv_fixed,
        kv_windowed=a.kv_windowed + b.kv_windowed,
    )
    return _Part(unit, first.parameters | second.parameters)


def _largest_leaf(model: nn.Module, name: str) -> int:
    parameters, _ = _tensors(model, name)
    by_leaf: dict[str, int] = {}
    for key, tensor in parameters.items():
        leaf = key.rpartition(".")[0]
        by_leaf[leaf] = by_leaf.get(leaf, 0) + tensor.nbytes
    return max(by_leaf.values(), default=0)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
