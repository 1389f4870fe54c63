"""Sequences of an encoder-decoder model that continue together: a batch, and its cache.

All decoders have as many columns in the cache. Those that joined later have padding on the left. A
batch is split, and batches are joined, layer by layer, so that besides the batch itself there is
never more in memory than a copy of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, EncoderDecoderCache

from predictor.profiling.meta_device import cache_layer
from predictor.shape_buckets import bucket_new_tokens


@dataclass(slots=True)
class LockstepBatch:
    """Sequences in step.

    Attributes:
        keys: The sequences, in the order of the rows.
        cache: Keys and values of the decoder.
        states: The encoder's output, of shape (rows, source, hidden).
        mask: 1 for each token of a source, of shape (rows, source).
        length: Cached columns of each decoder, as of the last forward pass that succeeded.
        offsets: For each key, the position of a token in its sequence less its column.
        pads: For each row, the columns of padding before the tokens of its decoder.
        sources: For each row, the number of tokens of its source.
    """

    keys: list[int]
    cache: EncoderDecoderCache
    states: torch.Tensor
    mask: torch.Tensor
    length: int
    offsets: dict[int, int]
    pads: list[int]
    sources: list[int]

    def decoder_mask(self, new: int) -> torch.Tensor | None:
        """Return 1 for each column of the decoder that is no padding; None if none is.

        Args:
            new: Columns of the next forward pass.
        """
        if not any(self.pads):
            return None
        columns = torch.arange(self.length + new)
        return (columns >= torch.tensor(self.pads)[:, None]).long().to(self.mask.device)

    def truncate(self, length: int) -> None:
        """Forget the columns of each decoder beyond a length, which a failed pass may have left."""
        self.length = length
        for layer in self.cache.self_attention_cache.layers:
            kept: Any = layer
            if kept.keys.shape[2] > self.length:
                kept.keys = kept.keys[:, :, : self.length]
                kept.values = kept.values[:, :, : self.length]

    def split(self, groups: Sequence[list[int]]) -> list[LockstepBatch]:
        """Return a batch for each group of keys. This one cannot be used afterwards.

        The new batches have no more columns than their sources and their decoders need.
        """
        rows = [torch.tensor([self.keys.index(key) for key in group]) for group in groups]
        lengths = [[self.sources[row] for row in own.tolist()] for own in rows]
        sources = [slice(max(own)) for own in lengths]
        pads = [[self.pads[row] for row in own.tolist()] for own in rows]
        targets = [slice(min(own), None) for own in pads]
        made = [(DynamicCache(), DynamicCache()) for _ in groups]
        caches = (self.cache.self_attention_cache, self.cache.cross_attention_cache)
        for which, (cache, columns) in enumerate(zip(caches, (targets, sources), strict=True)):
            layers: Any = cache.layers
            for layer in layers:
                for own, some, new in zip(rows, columns, made, strict=True):
                    new[which].layers.append(_select(layer, own, some))
                layer.keys = layer.values = None
        return [
            LockstepBatch(
                group,
                EncoderDecoderCache(*new),
                self.states[own.to(self.states.device), some],
                self.mask[own.to(self.mask.device), some],
                self.length - min(before),
                {key: self.offsets[key] + min(before) for key in group},
                [columns - min(before) for columns in before],
                tokens,
            )
            for group, own, some, new, before, tokens in zip(
                groups, rows, sources, made, pads, lengths, strict=True
            )
        ]


def padded_columns(batches: Sequence[LockstepBatch]) -> tuple[int, int]:
    """Return the columns of all rows of batches if they are joined, and those of each row alone."""
    rows = sum(len(batch.keys) for batch in batches)
    width = max(batch.mask.shape[1] for batch in batches) + max(b.length for b in batches)
    sources = sum(bucket_new_tokens(count) for batch in batches for count in batch.sources)
    replies = sum(batch.length * len(batch.keys) - sum(batch.pads) for batch in batches)
    return rows * width, sources + replies


def join(batches: Sequence[LockstepBatch]) -> LockstepBatch:
    """Return one batch of all the sequences of some, which cannot be used afterwards."""
    length = max(batch.length for batch in batches)
    columns = max(batch.mask.shape[1] for batch in batches)
    behind = [length - batch.length for batch in batches]
    beyond = [columns - batch.mask.shape[1] for batch in batches]
    caches = [batch.cache for batch in batches]
    left, right = [(more, 0) for more in behind], [(0, more) for more in beyond]
    replies = _join_layers([cache.self_attention_cache for cache in caches], left)
    sources = _join_layers([cache.cross_attention_cache for cache in caches], right)
    padded = list(zip(batches, beyond, strict=True))
    return LockstepBatch(
        [key for batch in batches for key in batch.keys],
        EncoderDecoderCache(replies, sources),
        torch.cat([pad(batch.states, (0, 0, 0, more)) for batch, more in padded]),
        torch.cat([pad(batch.mask, (0, more)) for batch, more in padded]),
        length,
        {
            key: offset - more
            for batch, more in zip(batches, behind, strict=True)
            for key, offset in batch.offsets.items()
        },
        [own + more for batch, more in zip(batches, behind, strict=True) for own in batch.pads],
        [count for batch in batches for count in batch.sources],
    )


def _join_layers(caches: Sequence[Any], sides: Sequence[tuple[int, int]]) -> DynamicCache:
    """Return a cache with the rows of several, with columns added at both sides of each."""
    joined: Any = DynamicCache()
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        keys, values = (
            torch.cat([pad(part, (0, 0, *side)) for part, side in zip(parts, sides, strict=True)])
            for parts in ([one.keys for one in layers], [one.values for one in layers])
        )
        joined.layers.append(cache_layer(keys, values))
        for layer in layers:
            layer.keys = layer.values = None
    return joined  # type: ignore[no-any-return]


def _select(layer: Any, rows: torch.Tensor, columns: slice) -> Any:
    index = rows.to(layer.keys.device)
    return cache_layer(layer.keys[index][:, :, columns], layer.values[index][:, :, columns])
