"""Layers of the KV cache beside those of keys and values alone: keys of an indexer in pages."""

from __future__ import annotations

import torch

from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import SequenceChunk
from predictor.private.cache_layers import CacheLayer

SIZE = 2


def pool() -> PagedKVCache:
    return PagedKVCache([CacheLayer("indexed_attention")], 20, 10)


def row(key: int, start: int, count: int) -> SequenceChunk:
    return SequenceChunk(key, start, [7] * count)


def keys(*rows: list[float]) -> torch.Tensor:
    """New keys of an indexer, of which all numbers of one token are equal."""
    return torch.tensor(rows)[:, :, None].expand(-1, -1, SIZE)


def test_each_row_gets_its_own_keys_of_the_indexer_after_padding() -> None:
    cache = pool()
    cache.lay_out([row(1, 0, 2), row(2, 0, 1)])
    first = cache.update_indexer(keys([10, 11], [0, 20]), 0)
    assert first[:, :, 0].tolist() == [[10, 11], [0, 20]]
    cache.lay_out([row(2, 1, 1), row(1, 2, 1)])
    second = cache.update_indexer(keys([21], [12]), 0)
    assert second.shape == (2, 3, SIZE)
    assert second[:, :, 1].tolist() == [[0, 20, 21], [10, 11, 12]]


def test_keys_of_the_indexer_go_with_the_pages_of_their_tokens() -> None:
    cache = pool()
    cache.lay_out([row(1, 0, 3)])
    cache.update_indexer(keys([10, 11, 12]), 0)
    cache.truncate(1, 1)
    cache.lay_out([row(1, 1, 1)])
    assert cache.update_indexer(keys([15]), 0)[0, :, 0].tolist() == [10, 15]
    cache.release(1)
    assert cache.free_pages == 19


def test_positions_of_cached_columns_are_those_of_the_rows() -> None:
    cache = pool()
    layer = cache.layers[0]
    cache.lay_out([row(1, 0, 3), row(2, 0, 1)])
    assert layer.indexer_position_ids is None
    layer.update(torch.ones(2, 1, 3, SIZE), torch.ones(2, 1, 3, SIZE))
    cache.lay_out([row(1, 3, 1), row(2, 1, 1)])
    assert layer.indexer_position_ids[0].tolist() == [[0, 1, 2], [0, 0, 0]]
