"""Cut units into the modules that are streamed one by one, where whole blocks need too much memory.

A module that reads weights itself is streamed with all of its children, so that no two modules of
which one contains the other are streamed by themselves. Small neighbours are streamed together, as
long as no buffer has to be larger for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from predictor.private.made_parameters import ignored_when_missing
from predictor.private.torch import own_buffers, own_parameters
from predictor.profiling.weight_reads import Readers, is_within


@dataclass(frozen=True, slots=True)
class StreamedModule:
    """A module that has its weights while it runs.

    Attributes:
        name: Its name in the model.
        size: Bytes of its weights.
    """

    name: str
    size: int


def find_fixed(model: PreTrainedModel, units: Iterable[str], readers: Readers) -> frozenset[str]:
    """Return the names of the weights that stay where they are read, and are not streamed.

    A module around their unit reads them, which runs while others are streamed. Or transformers
    computes them, so that no file has them.

    Args:
        model: The model, on the meta device.
        units: The names of its units.
        readers: The module that reads each weight.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    patterns = [re.compile(pattern) for pattern in ignored_when_missing(model)]
    names = Counter(map(id, weights.values()))
    fixed = {
        id(weight)
        for name, weight in weights.items()
        if names[id(weight)] == 1 and any(pattern.search(name) for pattern in patterns)
    }
    for unit in units:
        for name, weight in _weights(model, unit):
            reader = readers.of(name)
            if reader is None or not is_within(reader, unit):
                fixed.add(id(weight))
    return frozenset(name for name, weight in weights.items() if id(weight) in fixed)


def cut(
    model: nn.Module, units: Iterable[str], readers: Readers, fixed: frozenset[str]
) -> dict[str, tuple[StreamedModule, ...]]:
    """Return the modules of each unit.

    Args:
        model: The model, on the meta device.
        units: The names of units whose modules go through the same buffers. Single tensors have no
            modules.
        readers: The module that reads each weight.
        fixed: The names of weights that are not streamed.
    """
    weights = {unit: dict(_weights(model, unit)) for unit in units}
    sizes = {
        unit: {
            name: weight.nbytes
            for name, weight in own.items()
            if name != unit and name not in fixed
        }
        for unit, own in weights.items()
    }
    smallest = [_cut(unit, own, readers, 0) for unit, own in sizes.items()]
    limit = max((module.size for modules in smallest for module in modules), default=0)
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    # Modules that share weights with others are kept apart from their neighbours.
    shared = {unit for unit, own in weights.items() if any(names[id(x)] > 1 for x in own.values())}
    return {
        unit: tuple(_cut(unit, own, readers, 0 if unit in shared else limit))
        for unit, own in sizes.items()
    }


def _cut(
    name: str, sizes: dict[str, int], readers: Readers, limit: int
) -> Iterator[StreamedModule]:
    size = sum(sizes.values())
    is_small = size <= limit and readers.is_called(name)
    if sizes and (is_small or any(readers.of(weight) == name for weight in sizes)):
        yield StreamedModule(name, size)
        return
    children: dict[str, dict[str, int]] = {}
    begin = len(name) + 1 if name else 0
    for weight, own in sizes.items():
        child = name + weight[len(name) : begin] + weight[begin:].partition(".")[0]
        children.setdefault(child, {})[weight] = own
    for child, own_sizes in children.items():
        yield from _cut(child, own_sizes, readers, limit)


def _weights(model: nn.Module, unit: str) -> Iterator[tuple[str, nn.Parameter]]:
    owner, _, key = unit.rpartition(".")
    holder = model.get_submodule(owner)
    weight = own_parameters(holder).get(key)
    if weight is not None:
        yield unit, weight
    elif key not in own_buffers(holder):
        module = model.get_submodule(unit)
        yield from module.named_parameters(prefix=unit, remove_duplicate=False)
