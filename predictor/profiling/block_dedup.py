"""Runs blocks on the meta device that are alike, and repeats for the rest what these did to memory.

A large model is one block many times over, and all that counts on meta is what a block takes, keeps
and gives back. Blocks are alike where nothing but their index tells them apart: the same modules
with the same attributes and tensors of the same shapes. Two of a kind are run in every pass; where
both did the same with inputs of the same form, the others are taken to do it too, byte for byte.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from predictor.profiling.meta_device import LiveBytes, filled

_RUN = 2
"""How many blocks of a kind are run in a pass. One would do; the second holds the first to it."""

_INDICES = frozenset({"layer_idx", "layer_id", "layer_index"})
"""Attributes by which a block finds its part of the cache."""

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


class BlockDeduplicator:
    """The blocks of a model by their kind.

    Attributes:
        any: Whether some are of a kind with more members than are run.
    """

    def __init__(self, blocks: Sequence[nn.Module] = (), config: Any = None) -> None:
        """Compares blocks.

        Args:
            blocks: In order, so that each one's place is its index.
            config: The model's, whose lists may say of each block what it is.
        """
        said = (
            [value for value in vars(config).values() if _has(value, len(blocks))] if config else []
        )
        numbers: dict[Hashable, int] = {}
        kinds = [
            numbers.setdefault(
                (_kind(block, index), _plain([x[index] for x in said])), len(numbers)
            )
            for index, block in enumerate(blocks)
        ]
        members = Counter(kinds)
        self._blocks = [
            (block, index, kind)
            for index, (block, kind) in enumerate(zip(blocks, kinds, strict=True))
            if members[kind] > _RUN and "forward" not in vars(block)
        ]
        self.any = bool(self._blocks)

    @contextlib.contextmanager
    def few_run(self, live: LiveBytes, cache: Any) -> Iterator[None]:
        """Runs few blocks of each kind in the pass within.

        Args:
            live: Counts what the pass holds, weights and cache included.
            cache: What the pass adds keys and values to; all blocks are run where it is of a form
                that is not known here.
        """
        blocks = self._blocks if _grows_by_tokens(cache) else []
        calls = _Calls(live, cache)
        for block, index, kind in blocks:
            block.forward = calls.instead_of(block.forward, index, kind)
        try:
            yield
        finally:
            for block, _, _ in blocks:
                del block.forward


@dataclass(frozen=True, slots=True)
class _Tensor:
    """All that there is to know of a tensor on meta."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Tensor:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def make(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class _Call:
    """What a block did when it was called.

    Attributes:
        peak: Bytes alive at its worst moment besides those at its beginning.
        result: What it returned: tensors of its own, and plain values.
        structure: How these are put together.
        cached: Keys and values in its part of the cache afterwards.
    """

    peak: int
    result: tuple[Any, ...]
    structure: TreeSpec
    cached: tuple[_Tensor, ...]


class _Calls:
    """What blocks did in one pass, by their kind and by the form of what they were given."""

    def __init__(self, live: LiveBytes, cache: DynamicCache) -> None:
        self._live = live
        self._cache = cache
        self._done: dict[Hashable, list[_Call | None]] = {}

    def instead_of(self, forward: Callable[..., Any], index: int, kind: int) -> Callable[..., Any]:
        """Returns what runs a block of this kind or repeats what others of its kind did."""

        def run_or_repeat(*args: Any, **kwargs: Any) -> Any:
            given = kind, _form((args, kwargs), self._cache), _cached(self._cache, index)
            done = self._done.setdefault(given, [])
            if len(done) >= _RUN and done[0] is not None and done.count(done[0]) == len(done):
                return self._repeat(done[0], index)
            result, call = self._run(lambda: forward(*args, **kwargs), index)
            done.append(call)
            return result

        return run_or_repeat

    def _run(self, block: Callable[[], Any], index: int) -> tuple[Any, _Call | None]:
        """The result, and what was done; None for that where it is more than can be repeated."""
        live = self._live
        began, held, worst = live.now, _nbytes(self._cache, index), live.peak
        live.peak = began
        result = block()
        peak, live.peak = live.peak - began, max(worst, live.peak)
        leaves, structure = tree_flatten(result)
        if not all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in leaves):
            return result, None
        returned = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        if live.now - began != returned + _nbytes(self._cache, index) - held:
            return result, None  # something else was kept, or a result is a part of something
        told = tuple(_Tensor.of(x) if isinstance(x, torch.Tensor) else x for x in leaves)
        return result, _Call(peak, told, structure, _cached(self._cache, index))

    def _repeat(self, call: _Call, index: int) -> Any:
        live = self._live
        worst = live.peak = max(live.peak, live.now + call.peak)
        if call.cached != _cached(self._cache, index):
            self._cache_as(call.cached, index)
        made = [leaf.make() if isinstance(leaf, _Tensor) else leaf for leaf in call.result]
        if live.peak != worst:
            raise ValueError("to repeat a block takes more than the block does")
        return tree_unflatten(made, call.structure)

    def _cache_as(self, cached: Sequence[_Tensor], index: int) -> None:
        keys, values = cached
        if index == len(self._cache.layers):
            self._cache.layers.append(filled(keys.make(), values.make()))
            return
        layer: Any = self._cache.layers[index]
        # One after the other, as a cache does it: at no time are there two of both.
        layer.keys = keys.make()
        layer.values = values.make()


def _grows_by_tokens(cache: Any) -> bool:
    """Whether all its layers are keys and values of every token and nothing else."""
    return type(cache) is DynamicCache and all(type(x) is DynamicLayer for x in cache.layers)


def _layer(cache: DynamicCache, index: int) -> list[torch.Tensor]:
    """Keys and values of a layer; none before its first token."""
    layer: Any = cache.layers[index] if index < len(cache.layers) else None
    return [] if layer is None or layer.keys is None else [layer.keys, layer.values]


def _cached(cache: DynamicCache, index: int) -> tuple[_Tensor, ...]:
    return tuple(map(_Tensor.of, _layer(cache, index)))


def _nbytes(cache: DynamicCache, index: int) -> int:
    return sum(tensor.nbytes for tensor in _layer(cache, index))


def _form(given: Any, cache: DynamicCache) -> Hashable:
    """What a block is given but for the numbers in tensors; which of them share memory counts."""
    leaves, structure = tree_flatten(given, is_leaf=lambda leaf: leaf is cache)
    storages: dict[int, int] = {}
    forms: list[Hashable] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            shared = storages.setdefault(id(leaf.untyped_storage()), len(storages))
            forms.append((_Tensor.of(leaf), shared))
        elif leaf is cache:
            forms.append(DynamicCache)
        else:
            # What is not known equals nothing else, so that the block is run.
            forms.append((type(leaf), leaf) if isinstance(leaf, _PLAIN) else object())
    return structure, tuple(forms)


def _has(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == count


def _kind(block: nn.Module, index: int) -> Hashable:
    """All that a block is but for its index: equal for those that are alike."""
    return tuple(
        (name, type(module), _attributes(module, index))
        for name, module in block.named_modules(remove_duplicate=False)
    )


def _attributes(module: nn.Module, index: int) -> Hashable:
    return tuple(
        (key, _INDICES if key in _INDICES and value == index else _plain(value))
        for key, value in vars(module).items()
        if key != "_modules"
    )


def _plain(value: Any) -> Hashable:
    """A value to compare by; what is not known is alike only where it is the very same object."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, torch.Tensor):
        return _Tensor.of(value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _plain(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_plain, value))
    if isinstance(value, functools.partial):
        return _plain([value.func, value.args, value.keywords])
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(_plain, value))
    return id(value)
