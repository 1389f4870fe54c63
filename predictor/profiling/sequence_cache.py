"""The cache of a sequence, whatever its container and its name: its bytes, and longer ones.

Models return their cache under the name of an input (``past_key_values``, ``cache_params``,
``state``, ``mems``), extend one that they are given, or keep it in their modules.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache

from predictor.private.cache_layers import is_cache_layer, with_window
from predictor.private.torch import own_attributes

_BY_TOKENS = ("keys", "values", "indexer_keys")
"""The attributes of a layer that grow with the tokens, in their dimension before the last."""


@dataclass(frozen=True, slots=True)
class KeptTensors:
    """All that a model keeps of the sequences of a forward pass.

    Attributes:
        by_block: The tensors of each block.
        shared: Tensors that belong to no block or to all.
    """

    by_block: tuple[tuple[torch.Tensor, ...], ...]
    shared: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, caches: Iterable[Any], blocks: int) -> KeptTensors:
        """Return the tensors of caches of any kind, each of them once.

        A list with an entry for each block, a mapping from their indices, and the layers of a
        cache tell which tensors a block has.
        """
        owned: list[list[torch.Tensor]] = [[] for _ in range(blocks)]
        shared: list[torch.Tensor] = []
        seen: set[int] = set()
        for cache in caches:
            for block, tensor in _walk(cache, blocks, None):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    (shared if block is None else owned[block]).append(tensor)
        return cls(tuple(map(tuple, owned)), tuple(shared))

    def bytes_by_block(self) -> list[int]:
        """Return the bytes of each block; what belongs to none is spread over all."""
        count = len(self.by_block)
        spread = -(-sum(tensor.nbytes for tensor in self.shared) // max(1, count))
        return [sum(tensor.nbytes for tensor in own) + spread for own in self.by_block]

    def tensors(self) -> list[torch.Tensor]:
        """Return all of them."""
        return [tensor for own in (*self.by_block, self.shared) for tensor in own]


def in_modules(blocks: Sequence[nn.Module]) -> list[list[torch.Tensor]]:
    """Return the tensors that the modules of each block have as plain attributes."""
    return [
        [
            value
            for module in block.modules()
            for value in own_attributes(module).values()
            if isinstance(value, torch.Tensor)
        ]
        for block in blocks
    ]


def resized(cache: Cache, rows: int, tokens: int, windows: Sequence[int] = ()) -> Cache:
    """Return a cache of so many sequences of so many tokens, as a shorter one of one sequence.

    Args:
        cache: A cache whose layers keep all tokens.
        rows: The number of sequences.
        tokens: Tokens of each.
        windows: The positions that a token of each layer attends to, its own among them; 0 for all.
            Only those before the next token are kept.
    """
    longer = copy.copy(cache)
    longer.layers = [
        _resized_layer(layer, rows, tokens, window)
        for layer, window in zip(cache.layers, windows or [0] * len(cache.layers), strict=True)
    ]
    return longer


def bytes_per_token(layer: Any) -> int:
    """Return the bytes of what a layer keeps of one token; 0 if it keeps nothing."""
    held = [getattr(layer, name, None) for name in _BY_TOKENS]
    return sum(x.nbytes // max(1, x.shape[-2]) for x in held if isinstance(x, torch.Tensor))


def _resized_layer(layer: Any, rows: int, tokens: int, window: int) -> Any:
    longer, kept = copy.copy(layer), min(tokens, window - 1) if window else tokens
    for name, value in vars(layer).items():
        length = kept if name in _BY_TOKENS else None
        setattr(longer, name, _resized_value(value, rows, length))
    return with_window(longer, window, tokens) if window else longer


def _resized_value(value: Any, rows: int, tokens: int | None) -> Any:
    if isinstance(value, dict):
        return {key: _resized_value(item, rows, tokens) for key, item in value.items()}
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    shape = [rows, *value.shape[1:]]
    if tokens is not None:
        shape[-2] = tokens
    return value.new_empty(shape)


def _walk(value: Any, blocks: int, block: int | None) -> Iterator[tuple[int | None, torch.Tensor]]:
    """Yield the tensors of a value with the block that each belongs to."""
    if isinstance(value, torch.Tensor):
        yield block, value
    elif isinstance(value, Cache):
        yield from _walk_cache(value, blocks)
    elif isinstance(value, Mapping):
        is_by_block = block is None and value.keys() == set(range(blocks))
        for key, item in value.items():
            yield from _walk(item, blocks, key if is_by_block else block)
    elif isinstance(value, (list, tuple)):
        is_by_block = block is None and len(value) == blocks
        for index, item in enumerate(value):
            yield from _walk(item, blocks, index if is_by_block else block)
    elif is_cache_layer(value) or (block is None and hasattr(value, "__dict__")):
        yield from _walk_attributes(vars(value), blocks, block)


def _walk_attributes(
    attributes: Mapping[str, Any], blocks: int, block: int | None
) -> Iterator[tuple[int | None, torch.Tensor]]:
    for item in attributes.values():
        if isinstance(item, (torch.Tensor, Mapping, list, tuple)):
            yield from _walk(item, blocks, block)


def _walk_cache(cache: Cache, blocks: int) -> Iterator[tuple[int | None, torch.Tensor]]:
    if len(cache.layers) > blocks:
        raise ValueError("more cache layers than blocks")
    for index, layer in enumerate(cache.layers):
        yield from _walk(layer, blocks, index)
    others = {name: value for name, value in vars(cache).items() if name != "layers"}
    yield from _walk_attributes(others, blocks, None)
