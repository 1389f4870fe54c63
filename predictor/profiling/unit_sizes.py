"""Cut a model on the meta device into placement units, and count the bytes of their weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.mixture.modules import ExpertsModule, find_experts, names_of_experts
from predictor.placement.units import Experts, PlacementUnit
from predictor.private.torch import own_buffers, own_parameters
from predictor.profiling.probe import Probe
from predictor.profiling.streamed_modules import StreamedModule, cut, find_fixed
from predictor.profiling.weight_reads import Readers, is_within


def measure_units(
    model: PreTrainedModel,
    blocks: tuple[str, ...],
    probed: Probe,
    readers: Readers,
    *,
    with_experts: bool,
) -> tuple[PlacementUnit, ...]:
    """Return the units of a model: first those outside of blocks, then the blocks.

    Args:
        model: The model on the meta device.
        blocks: The names of its blocks.
        probed: The measured sizes of the KV cache.
        readers: The module that reads each weight.
        with_experts: Whether experts can be read by themselves.
    """
    order = {name: index for index, name in enumerate(blocks)}
    names = list(_cut(model, "", order))
    fixed = find_fixed(model, names, readers)
    streamed = cut(model, blocks, readers, fixed)
    streamed |= cut(model, [name for name in names if name not in order], readers, fixed)
    modules = find_experts(model, blocks) if with_experts else {}
    experts = _experts(model, modules, readers, fixed)
    measured = _Measured(model, probed, frozenset(model.state_dict()), fixed, streamed, experts)
    units = _merge_tied([measured.part(name, order.get(name)) for name in names])
    return tuple(sorted(units, key=lambda u: (u.block is not None, u.block or 0, u.weights)))


def _experts(
    model: PreTrainedModel,
    modules: Mapping[str, ExpertsModule],
    readers: Readers,
    fixed: frozenset[str],
) -> dict[str, Experts]:
    """Return the experts of each block, with the modules of its dense part."""
    names = names_of_experts(model, (module.name for module in modules.values()))
    dense = cut(model, modules, readers, fixed | names)
    return {
        block: replace(
            module.placed,
            modules=tuple(part.name for part in dense[block]),
            largest_module=max((part.size for part in dense[block]), default=0),
        )
        for block, module in modules.items()
    }


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
    fixed: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of a model whose units are measured."""

    model: PreTrainedModel
    probed: Probe
    stored: frozenset[str]
    fixed: frozenset[str]
    streamed: Mapping[str, Sequence[StreamedModule]]
    experts: Mapping[str, Experts]

    def part(self, name: str, block: int | None) -> _Part:
        """Return a unit by itself, before tied ones are merged."""
        parameters, buffers = _tensors(self.model, name)
        held = {key: tensor for key, tensor in parameters.items() if key in self.fixed}
        moved = {key: tensor for key, tensor in parameters.items() if key not in self.fixed}
        stored = _bytes(tensor for key, tensor in buffers.items() if key in self.stored)
        modules = self.streamed[name]
        unit = PlacementUnit(
            names=(name,),
            block=block,
            weights=_bytes(moved.values()) + (stored if modules else 0),
            buffers=_bytes(tensor for key, tensor in buffers.items() if key not in self.stored),
            largest_module=max((module.size for module in modules), default=0),
            kv_per_token=self.probed.kv_per_token[block] if block is not None else 0,
            kv_fixed=self.probed.kv_fixed[block] if block is not None else 0,
            kv_windowed=self._windowed(block),
            experts=self.experts.get(name),
            modules=tuple(module.name for module in modules),
            fixed=_bytes(held.values()) + (0 if modules else stored),
            fixed_names=tuple(key for key in self.fixed if is_within(key, name)),
        )
        return _Part(unit, _by_identity(moved), _by_identity(held))

    def _windowed(self, block: int | None) -> int:
        return self.probed.kv_windowed[block] if block is not None and self.probed.window else 0


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
        twins = [other for other in merged if _share(other, part)]
        merged = [other for other in merged if other not in twins]
        merged.append(functools.reduce(_join, [*twins, part]))
    return [part.unit for part in merged]


def _share(first: _Part, second: _Part) -> bool:
    held = first.fixed.keys() & second.fixed.keys()
    return bool(held or first.parameters.keys() & second.parameters.keys())


def _join(first: _Part, second: _Part) -> _Part:
    a, b = first.unit, second.unit
    blocks = [block for block in (a.block, b.block) if block is not None]
    parameters, fixed = first.parameters | second.parameters, first.fixed | second.fixed
    again = _sum(first.parameters, second.parameters) - sum(parameters.values())
    unit = PlacementUnit(
        names=a.names + b.names,
        block=min(blocks) if len(blocks) == 2 else None,
        weights=a.weights + b.weights - again,
        buffers=a.buffers + b.buffers,
        largest_module=max(a.largest_module, b.largest_module),
        kv_per_token=a.kv_per_token + b.kv_per_token,
        kv_fixed=a.kv_fixed + b.kv_fixed,
        kv_windowed=a.kv_windowed + b.kv_windowed,
        modules=a.modules + b.modules,
        fixed=a.fixed + b.fixed - (_sum(first.fixed, second.fixed) - sum(fixed.values())),
        fixed_names=a.fixed_names + b.fixed_names,
    )
    return _Part(unit, parameters, fixed)


def _sum(*sizes: Mapping[int, int]) -> int:
    return sum(sum(own.values()) for own in sizes)


def _by_identity(tensors: Mapping[str, torch.Tensor]) -> dict[int, int]:
    return {id(tensor): tensor.nbytes for tensor in tensors.values()}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
