"""Pages of the KV cache: their owners, their layout in a forward pass, and that none is shared."""

from __future__ import annotations

import random

import pytest
import torch

from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import Layout, SequenceChunk
from predictor.private.cache_layers import CacheLayer

HEADS, SIZE = 2, 3

LAYERS = [CacheLayer("full_attention")] * 2


def row(key: int, start: int, count: int) -> SequenceChunk:
    return SequenceChunk(key, start, [7] * count)


# A layout, worked out by hand


def test_rows_of_mixed_lengths_end_together() -> None:
    # columns      0  1  2  3  4  5     past 1, new 5: as many as the second row has new
    # row 0, 5+1   3  9  4  8  2  7     p p p p p n
    # row 1, 0+5   .  1  6  5 11 12     . n n n n n
    # row 2, 1+2   .  .  . 10 13 14     . . . p n n
    layout = Layout(
        [row(0, 5, 1), row(1, 0, 5), row(2, 1, 2)],
        [torch.tensor(s) for s in ([3, 9, 4, 8, 2, 7], [1, 6, 5, 11, 12], [10, 13, 14])],
    )
    assert (layout.past, layout.new, layout.lengths.tolist()) == (1, 5, [6, 5, 3])
    gather, written, fresh = layout.indices(torch.device("cpu"))
    assert gather.tolist() == [[3, 9, 4, 8, 2, 7], [0, 1, 6, 5, 11, 12], [0, 0, 0, 10, 13, 14]]
    assert written.tolist() == [7, 1, 6, 5, 11, 12, 13, 14]
    # Of the 3 * 5 computed columns: the last of row 0, all of row 1, the last two of row 2.
    assert fresh is not None
    assert fresh.tolist() == [4, 5, 6, 7, 8, 9, 13, 14]


def test_where_all_rows_are_as_long_every_computed_column_is_written() -> None:
    layout = Layout([row(0, 3, 1), row(1, 0, 1)], [torch.tensor([4, 3, 2, 1]), torch.tensor([5])])
    gather, written, fresh = layout.indices(torch.device("cpu"))
    assert (layout.past, layout.new) == (3, 1)
    assert gather.tolist() == [[4, 3, 2, 1], [0, 0, 0, 5]]
    assert written.tolist() == [1, 5]
    assert fresh is None


# Owners of pages


def test_pages_are_given_as_they_are_needed_and_never_to_two() -> None:
    cache = PagedKVCache(LAYERS[:1], 11, 10)
    cache.lay_out([row(1, 0, 4), row(2, 0, 2)])
    assert (len(cache.owned_pages(1)), len(cache.owned_pages(2))) == (4, 2)
    before = cache.owned_pages(1)
    cache.lay_out([row(1, 4, 1), row(3, 0, 3)])
    assert cache.owned_pages(1)[:4] == before
    everyone = [page for key in (1, 2, 3) for page in cache.owned_pages(key)]
    assert sorted(everyone) == list(range(1, 11))  # all but the padding's


def test_released_pages_are_given_again() -> None:
    cache = PagedKVCache(LAYERS[:1], 7, 6)
    cache.lay_out([row(1, 0, 2), row(2, 0, 4)])
    freed = cache.owned_pages(2)
    cache.release(2)
    cache.lay_out([row(3, 0, 4)])
    assert sorted(cache.owned_pages(3)) == sorted(freed)
    cache.release(1)
    cache.release(3)
    cache.lay_out([row(4, 0, 6)])
    assert sorted(cache.owned_pages(4)) == [1, 2, 3, 4, 5, 6]


def test_a_pass_that_is_laid_out_again_takes_no_more_pages() -> None:
    cache = PagedKVCache(LAYERS[:1], 6, 5)
    first = cache.lay_out([row(1, 0, 3), row(2, 0, 2)])
    again = cache.lay_out([row(1, 0, 3), row(2, 0, 2)])
    half = cache.lay_out([row(1, 0, 3)])
    cpu = torch.device("cpu")
    assert torch.equal(first.indices(cpu)[0], again.indices(cpu)[0])
    assert half.indices(cpu)[1].tolist() == first.indices(cpu)[1].tolist()[:3]


def test_releasing_whom_nobody_knows_changes_nothing() -> None:
    cache = PagedKVCache(LAYERS[:1], 4, 3)
    cache.release(5)
    cache.lay_out([row(1, 0, 3)])
    cache.release(1)
    cache.release(1)
    cache.lay_out([row(2, 0, 3)])
    assert sorted(cache.owned_pages(2)) == [1, 2, 3]


def test_more_pages_than_there_are_is_an_error_that_loses_none() -> None:
    cache = PagedKVCache(LAYERS[:1], 5, 10)
    with pytest.raises(MemoryError, match="3 KV pages needed, 2 are free"):
        cache.lay_out([row(1, 0, 2), row(2, 0, 3)])
    cache.release(1)
    cache.release(2)
    cache.lay_out([row(3, 0, 4)])


def test_a_layer_that_is_asked_before_any_layout_says_so() -> None:
    with pytest.raises(RuntimeError, match="no pass was laid out"):
        PagedKVCache(LAYERS[:1], 4, 3).get_seq_length()


# What a layer gives


def update(
    cache: PagedKVCache, rows: list[SequenceChunk], layer: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes keys that say whose token they are, and its position; values are their negatives.

    What is computed in the padding is NaN.
    """
    layout = cache.lay_out(rows)
    states = torch.full((len(rows), HEADS, layout.new, SIZE), float("nan"))
    for index, own in enumerate(rows):
        for offset in range(len(own.tokens)):
            position = own.start + offset
            states[index, :, layout.new - len(own.tokens) + offset] = stamp(
                own.key, position, layer
            )
    return cache.layers[layer].update(states, -states)


def stamp(key: int, position: int, layer: int) -> torch.Tensor:
    entries = torch.arange(1.0, HEADS * SIZE + 1).view(HEADS, SIZE) / 100
    return entries + key * 10_000 + position * 10 + layer


def expected(rows: list[SequenceChunk], layer: int = 0) -> torch.Tensor:
    width = max(own.end for own in rows)
    padded = torch.zeros(len(rows), HEADS, width, SIZE)
    for index, own in enumerate(rows):
        for position in range(own.end):
            padded[index, :, width - own.end + position] = stamp(own.key, position, layer)
    return padded


def test_a_layer_gives_whole_rows_with_zeros_before_them() -> None:
    cache = PagedKVCache(LAYERS[:2], 20, 10)
    for rows in ([row(1, 0, 5), row(2, 0, 2)], [row(1, 5, 1), row(2, 2, 4)], [row(2, 6, 1)]):
        for layer in range(2):
            keys, values = update(cache, rows, layer)
            assert torch.equal(keys, expected(rows, layer))
            assert torch.equal(values, -expected(rows, layer))
        width = max(own.end for own in rows)
        new = max(len(own.tokens) for own in rows)
        assert cache.get_seq_length() == width - new
        assert cache.get_mask_sizes(new, 0) == (width, 0)


def test_a_layer_takes_its_memory_once_for_all_pages() -> None:
    cache = PagedKVCache(LAYERS[:2], 20, 10)
    assert not cache.layers[0].is_initialized
    update(cache, [row(1, 0, 3)])
    pool = cache.layers[0].keys
    assert pool.shape == (20, HEADS, SIZE)
    update(cache, [row(1, 3, 6)])
    assert cache.layers[0].keys is pool
    assert not cache.layers[1].is_initialized


def test_in_any_company_every_row_is_its_own_and_the_padding_stays_zero() -> None:
    chance = random.Random(5)
    cache = PagedKVCache(LAYERS[:1], 65, 20)
    cached: dict[int, int] = {}
    fresh_keys = iter(range(1, 1000))
    for _ in range(400):
        if cached and chance.random() < 0.3:
            key = chance.choice(list(cached))
            cache.release(key)
            del cached[key]
        while len(cached) < 3:
            cached[next(fresh_keys)] = 0
        rows = []
        for key in chance.sample(list(cached), chance.randint(1, 3)):
            if room := 20 - cached[key]:
                rows.append(row(key, cached[key], min(room, chance.choice([1, 1, 2, 9]))))
        if not rows:
            continue
        keys, values = update(cache, rows)
        assert torch.equal(keys, expected(rows))
        assert torch.equal(values, -expected(rows))
        for own in rows:
            cached[own.key] = own.end
        pages = [page for key in cached if cached[key] for page in cache.owned_pages(key)]
        assert len(set(pages)) == len(pages) == sum(cached.values())
        assert 0 not in pages
        assert not cache.layers[0].keys[0].any()
        assert not cache.layers[0].values[0].any()
