"""Sequences of an encoder-decoder model whose decoders are in step: a batch, and its cache.

A batch is split layer by layer, so that besides the batch itself there is never more in memory than
a copy of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from predictor.profiling.meta_device import cache_layer


@dataclass(slots=True)
class LockstepBatch:
    """Sequences in step.

    Attributes:
        keys: The sequences, in the order of the rows.
        cache: Keys and values of the decoder.
        states: The encoder's output, of shape (rows, source, hidden).
        mask: 1 for each token of a source, of shape (rows, source).
        length: Cached tokens of each decoder, as of the last forward pass that succeeded.
        offsets: For each key, how many of its tokens stand before those of the decoder.
    """

    keys: list[int]
    cache: EncoderDecoderCache
    states: torch.Tensor
    mask: torch.Tensor
    length: int
    offsets: dict[int, int]

    def truncate(self, length: int) -> None:
        """Forget the tokens of each decoder beyond a length, which a failed pass may have left."""
        self.length = length
        for layer in self.cache.self_attention_cache.layers:
            kept: Any = layer
            if kept.keys.shape[2] > self.length:
                kept.keys = kept.keys[:, :, : self.length]
                kept.values = kept.values[:, :, : self.length]

    def split(self, groups: Sequence[list[int]]) -> list[LockstepBatch]:
        """Return a batch for each group of keys. This one cannot be used afterwards.

        The new batches have no more columns than their sources need.
        """
        rows = [torch.tensor([self.keys.index(key) for key in group]) for group in groups]
        columns = [int(self.mask[own].sum(dim=1).max()) for own in rows]
        made = [(DynamicCache(), DynamicCache()) for _ in groups]
        caches = (self.cache.self_attention_cache, self.cache.cross_attention_cache)
        for which, cache in enumerate(caches):
            layers: Any = cache.layers
            for layer in layers:
                for own, most, new in zip(rows, columns, made, strict=True):
                    new[which].layers.append(_select(layer, own, most if which else None))
                layer.keys = layer.values = None
        return [
            LockstepBatch(
                group,
                EncoderDecoderCache(*new),
                self.states[own.to(self.states.device), :most],
                self.mask[own.to(self.mask.device), :most],
                self.length,
                {key: self.offsets[key] for key in group},
            )
            for group, own, most, new in zip(groups, rows, columns, made, strict=True)
        ]


def _select(layer: Any, rows: torch.Tensor, columns: int | None) -> Any:
    index = rows.to(layer.keys.device)
    return cache_layer(layer.keys[index, :, :columns], layer.values[index, :, :columns])
