"""Sequences of an encoder-decoder model that are in step: a batch, and what is kept of it.

A cohort is made less, or split, layer by layer, so that besides what is kept there is never more
than a copy of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from predictor.profiling.meta_device import filled


@dataclass(slots=True)
class LockstepBatch:
    """Sequences in step.

    Attributes:
        keys: Theirs, in the order of the rows.
        cache: What the decoder keeps.
        states: What the encoder made, of shape (rows, source, hidden).
        mask: 1 where a source has a token, of shape (rows, source).
        length: Tokens of each decoder that are cached, as far as passes have come to an end.
        sources: For each key how many tokens of its line are before the decoder's.
    """

    keys: list[int]
    cache: EncoderDecoderCache
    states: torch.Tensor
    mask: torch.Tensor
    length: int
    sources: dict[int, int]

    def go_back(self, length: int) -> None:
        """Forgets what each decoder has beyond a length, which a pass may have left halfway."""
        self.length = length
        for layer in self.cache.self_attention_cache.layers:
            kept: Any = layer
            if kept.keys.shape[2] > self.length:
                kept.keys = kept.keys[:, :, : self.length]
                kept.values = kept.values[:, :, : self.length]

    def part(self, groups: Sequence[list[int]]) -> list[LockstepBatch]:
        """Returns a cohort for each group of keys; this one is nothing any more.

        They have no more columns than their sources need.
        """
        rows = [torch.tensor([self.keys.index(key) for key in group]) for group in groups]
        columns = [int(self.mask[own].sum(dim=1).max()) for own in rows]
        made = [(DynamicCache(), DynamicCache()) for _ in groups]
        caches = (self.cache.self_attention_cache, self.cache.cross_attention_cache)
        for which, cache in enumerate(caches):
            layers: Any = cache.layers
            for layer in layers:
                for own, most, new in zip(rows, columns, made, strict=True):
                    new[which].layers.append(_some(layer, own, most if which else None))
                layer.keys = layer.values = None
        return [
            LockstepBatch(
                group,
                EncoderDecoderCache(*new),
                self.states[own.to(self.states.device), :most],
                self.mask[own.to(self.mask.device), :most],
                self.length,
                {key: self.sources[key] for key in group},
            )
            for group, own, most, new in zip(groups, rows, columns, made, strict=True)
        ]


def _some(layer: Any, rows: torch.Tensor, columns: int | None) -> Any:
    there = rows.to(layer.keys.device)
    return filled(layer.keys[there, :, :columns], layer.values[there, :, :columns])
