"""Pages of the KV cache: their owners, their layout in a forward pass, and that none is shared."""

from __future__ import annotations

import random

import pytest
import torch

from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import Layout, SequenceChunk
from predictor.private.cache_layers import CacheLayer

CPU = torch.device("cpu")
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
    indices = layout.indices(CPU)
    assert layout.gather(CPU).tolist() == [
        [3, 9, 4, 8, 2, 7],
        [0, 1, 6, 5, 11, 12],
        [0, 0, 0, 10, 13, 14],
    ]
    assert indices.written.tolist() == [7, 1, 6, 5, 11, 12, 13, 14]
    # Of the 3 * 5 computed columns: the last of row 0, all of row 1, the last two of row 2.
    assert indices.fresh is not None
    assert indices.fresh.tolist() == [4, 5, 6, 7, 8, 9, 13, 14]


def test_a_layer_with_a_window_attends_to_the_columns_that_the_first_new_one_sees() -> None:
    # columns      0  1  2  3  4  5     past 4, new 2; a window of 3: two before the new ones
    # row 0, 4+2         6  2  1  5     (of its tokens the first two are forgotten)
    # row 1, 3+1         .  3  4  7
    rows, pages = [row(0, 4, 2), row(1, 3, 1)], [torch.arange(1, 7), torch.arange(7, 11)]
    windowed = [torch.tensor([0, 0, 6, 2, 1, 5]), torch.tensor([0, 3, 4, 7])]
    layout = Layout(rows, pages, window_pages=windowed)
    assert (layout.past, layout.past_within(3), layout.past_within(9)) == (4, 2, 4)
    indices = layout.indices(CPU, 3)
    assert layout.gather(CPU, 3).tolist() == [[6, 2, 1, 5], [0, 3, 4, 7]]
    assert indices.written.tolist() == [1, 5, 7]
    assert layout.gather(CPU).tolist() == [[1, 2, 3, 4, 5, 6], [0, 0, 7, 8, 9, 10]]


def test_where_all_rows_are_as_long_every_computed_column_is_written() -> None:
    layout = Layout([row(0, 3, 1), row(1, 0, 1)], [torch.tensor([4, 3, 2, 1]), torch.tensor([5])])
    indices = layout.indices(CPU)
    assert (layout.past, layout.new) == (3, 1)
    assert layout.gather(CPU).tolist() == [[4, 3, 2, 1], [0, 0, 0, 5]]
    assert indices.written.tolist() == [1, 5]
    assert indices.fresh is None


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
    assert torch.equal(first.gather(CPU), again.gather(CPU))
    assert half.indices(CPU).written.tolist() == first.indices(CPU).written.tolist()[:3]


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


def expected(rows: list[SequenceChunk], layer: int = 0, window: int = 0) -> torch.Tensor:
    """Whole rows; of rows with a window, the columns that the first new one sees."""
    width, new = max(own.end for own in rows), max(len(own.tokens) for own in rows)
    padded = torch.zeros(len(rows), HEADS, width, SIZE)
    for index, own in enumerate(rows):
        for position in range(max(0, own.start - window + 1) if window else 0, own.end):
            padded[index, :, width - own.end + position] = stamp(own.key, position, layer)
    return padded[:, :, max(0, width - new - window + 1) :] if window else padded


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
    assert pool.shape == (HEADS, 20, SIZE)
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
        assert not cache.layers[0].keys[:, 0].any()
        assert not cache.layers[0].values[:, 0].any()


# Layers with a window

WINDOW = 4
WINDOWED = [CacheLayer("full_attention"), CacheLayer("sliding_attention", window=WINDOW)]


def test_a_window_gives_back_the_pages_of_what_left_it() -> None:
    cache = PagedKVCache(WINDOWED, 31, 20, window_pages=10)
    assert cache.is_sliding == [False, True]
    assert not cache.can_share
    rows = [row(1, 0, 7)]
    for layer in range(2):
        keys, _ = update(cache, rows, layer)
        assert torch.equal(keys, expected(rows, layer))
    cache.forget(rows)
    assert cache.free_window_pages == 9 - (WINDOW - 1)
    assert len(cache.owned_pages(1)) == 7  # in layers that keep all
    rows = [row(1, 7, 1), row(2, 0, 2)]
    assert torch.equal(update(cache, rows, 0)[0], expected(rows, 0))
    assert torch.equal(update(cache, rows, 1)[0], expected(rows, 1, WINDOW))
    assert cache.get_mask_sizes(2, 1) == (WINDOW - 1 + 2, 6 - (WINDOW - 1))
    assert cache.layers[1].keys.shape[1] == 10
    cache.release(1)
    cache.release(2)
    assert (cache.free_pages, cache.free_window_pages) == (30, 9)


def test_one_row_has_no_padding_before_its_tokens_if_it_is_not_copied() -> None:
    for gathers, past in ((False, 9), (True, 63)):
        cache = PagedKVCache([CacheLayer("full_attention")], 31, 20)
        cache.gathers = gathers
        cache.lay_out([row(1, 0, 9)])
        assert cache.lay_out([row(1, 9, 1)], bucket_shapes=True).past == past


@pytest.mark.parametrize(
    ("dtype", "copies", "past"),
    [(torch.bfloat16, True, 63), (torch.bfloat16, False, 9), (torch.float32, True, 9)],
)
@pytest.mark.parametrize("kind", ["full_attention", "indexed_attention"])
def test_one_row_that_a_model_copies_in_half_precision_has_one_of_few_lengths(
    kind: str, dtype: torch.dtype, copies: bool, past: int
) -> None:
    cache = PagedKVCache([CacheLayer(kind)], 31, 20)
    for rows in ([row(1, 0, 4), row(2, 0, 4)], [row(1, 4, 5)]):
        layout = cache.lay_out(rows, bucket_shapes=True)
        states = torch.ones(len(rows), 1, layout.new, 2, dtype=dtype)
        keys, _ = cache.update(states, states, 0)
        if kind == "indexed_attention" and copies:
            cache.update_indexer(states[:, 0], 0)
        elif copies:
            keys.exp()
    assert cache.lay_out([row(1, 9, 1)], bucket_shapes=True).past == past


def test_a_pass_that_failed_is_repeated_on_the_same_window() -> None:
    cache = PagedKVCache(WINDOWED, 31, 20, window_pages=20)
    update(cache, [row(1, 0, 6)], 1)
    cache.forget([row(1, 0, 6)])
    first = update(cache, [row(1, 6, 8)], 1)[0]
    assert torch.equal(update(cache, [row(1, 6, 8)], 1)[0], first)
    assert torch.equal(first, expected([row(1, 6, 8)], 1, WINDOW))


def test_what_is_released_cannot_be_continued_if_there_is_a_window() -> None:
    cache = PagedKVCache(WINDOWED, 31, 20, window_pages=20)
    cache.lay_out([row(1, 0, 3)])
    assert cache.holds(1)
    cache.release(1)
    assert not cache.holds(1)


@pytest.mark.parametrize(("longest", "pages"), [(WINDOW, 20), (20, 0)])
def test_a_window_that_no_sequence_outgrows_or_that_is_not_planned_is_kept_whole(
    longest: int, pages: int
) -> None:
    cache = PagedKVCache(WINDOWED, 31, longest, window_pages=pages)
    assert cache.is_sliding == [False, False]
    assert cache.can_share
    assert cache.free_window_pages == 0


def test_in_any_company_every_window_is_its_own() -> None:
    chance, longest, chunk, sequences = random.Random(7), 40, 9, 3
    pages = sequences * WINDOW + sequences * chunk
    cache = PagedKVCache(WINDOWED, sequences * longest + 1, longest, window_pages=pages)
    cached: dict[int, int] = {}
    fresh_keys = iter(range(1, 1000))
    for _ in range(300):
        if cached and chance.random() < 0.1:
            key = chance.choice(list(cached))
            cache.release(key)
            del cached[key]
        while len(cached) < sequences:
            cached[next(fresh_keys)] = 0
        rows = []
        for key in chance.sample(list(cached), chance.randint(1, sequences)):
            if room := longest - cached[key]:
                rows.append(row(key, cached[key], min(room, chance.choice([1, 1, 2, chunk]))))
        if not rows:
            continue
        keys, values = update(cache, rows, 1)
        assert torch.equal(keys, expected(rows, 1, WINDOW))
        assert torch.equal(values, -expected(rows, 1, WINDOW))
        if chance.random() < 0.2:
            continue  # the pass failed in a later layer, and is repeated or not
        cache.forget(rows)
        for own in rows:
            cached[own.key] = own.end
