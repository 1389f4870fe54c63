"""Which blocks of a model are of one kind: those that differ in their index alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from predictor.private.torch import own_attributes
from predictor.profiling.forms import SCALARS

_INDICES = frozenset({"layer_idx", "layer_id", "layer_index"})
"""Attributes by which a block addresses its part of the cache."""


def number_kinds(blocks: Sequence[nn.Module], config: Any) -> list[int]:
    """Return the number of each block's kind.

    Args:
        blocks: In order, by their index.
        config: The model's config. Its lists with an entry for each block tell kinds apart.
    """
    values = vars(config).values() if config else ()
    lists = [value for value in values if _has(value, len(blocks))]
    numbers: dict[Hashable, int] = {}
    return [
        numbers.setdefault(
            (_kind(block, index), _comparable([_entry(entries, index) for entries in lists])),
            len(numbers),
        )
        for index, block in enumerate(blocks)
    ]


def _entry(entries: Sequence[Any], index: int) -> Any:
    """Return an entry; a list of indices, such as of the blocks with experts, tells none apart."""
    entry = entries[index]
    return _INDICES if type(entry) is int and entry == index else entry


def _has(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == count


def _kind(block: nn.Module, index: int) -> Hashable:
    """Return a value that is equal for blocks that differ in their index alone."""
    return tuple(
        (name, type(module), _attributes(module, index))
        for name, module in block.named_modules(remove_duplicate=False)
    )


def _attributes(module: nn.Module, index: int) -> Hashable:
    return tuple(
        (key, _INDICES if key in _INDICES and value == index else _comparable(value))
        for key, value in own_attributes(module).items()
    )


def _is_frozen(value: Any) -> bool:
    """Return whether a value is a dataclass that never changes, unlike transformers' configs."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _comparable(value: Any) -> Hashable:
    """Return a value to compare by; an unknown object equals itself alone."""
    if isinstance(value, SCALARS):
        return type(value), value
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, Mapping):
        return type(value), tuple((key, _comparable(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_comparable, value))
    if _is_frozen(value):
        names = (field.name for field in dataclasses.fields(value))
        return type(value), tuple(_comparable(getattr(value, name)) for name in names)
    if isinstance(value, functools.partial):
        return _comparable([value.func, value.args, value.keywords])
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(_comparable, value))
    return id(value)
