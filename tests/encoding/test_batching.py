"""Which texts are read together, as arithmetic."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.engine.encoding.batching import BatchLimits, TextQueue

LIMITS = BatchLimits(tokens=64, rows=8)
COSTLY = replace(LIMITS, breakeven_tokens=1000)
"""A pass costs so much that no padding is too much."""

lengths = st.lists(st.integers(1, 64), min_size=1, max_size=40)
limits = st.builds(
    BatchLimits,
    tokens=st.integers(64, 256),
    rows=st.integers(1, 32),
    breakeven_tokens=st.integers(0, 300),
    bucket_shapes=st.booleans(),
)


def queue(lengths: Sequence[int], limits: BatchLimits) -> TextQueue:
    """Return a queue of texts of these lengths, each of its own request, under keys 0, 1, 2..."""
    new = TextQueue(limits)
    for key, length in enumerate(lengths):
        new.add(key, length)
    return new


def choose_batch(lengths: Sequence[int], limits: BatchLimits) -> list[int]:
    """Return which of the texts share the next forward pass."""
    return queue(lengths, limits).take_batch()


def searched_batch(lengths: Sequence[int], limits: BatchLimits) -> list[int]:
    """The batch of the oldest text and its neighbours by length, with everything sorted anew."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    first = last = order.index(0)
    chosen, padding = (first, last), searched_padding(lengths[0:1], limits)
    while True:
        wider = [
            (searched_padding([lengths[row] for row in order[low : high + 1]], limits), low, high)
            for low, high in ((first - 1, last), (first, last + 1))
            if low >= 0
            and high < len(order)
            and high - low < limits.rows
            and limits.rows_of(high - low + 1) * limits.columns(lengths[order[high]])
            <= limits.tokens
        ]
        if not wider:
            return order[chosen[0] : chosen[1] + 1]
        more, first, last = min(wider)
        if more - padding <= limits.breakeven_tokens:
            chosen, padding = (first, last), more


def searched_padding(lengths: Sequence[int], limits: BatchLimits) -> int:
    return limits.rows_of(len(lengths)) * limits.columns(max(lengths)) - sum(lengths)


def test_texts_of_one_length_go_together() -> None:
    assert choose_batch([8, 8, 8], LIMITS) == [0, 1, 2]


def test_a_pass_has_no_more_rows_or_tokens_than_it_may() -> None:
    assert len(choose_batch([1] * 20, LIMITS)) == 8
    assert len(choose_batch([30] * 20, LIMITS)) == 2


def test_padding_is_worth_it_where_a_pass_costs_more() -> None:
    assert choose_batch([4, 20], LIMITS) == [0]
    assert choose_batch([4, 20], COSTLY) == [0, 1]
    assert choose_batch([4, 20], replace(LIMITS, breakeven_tokens=16)) == [0, 1]
    assert choose_batch([4, 20], replace(LIMITS, breakeven_tokens=15)) == [0]


def test_the_nearest_lengths_come_first() -> None:
    assert choose_batch([20, 1, 19, 40, 21], replace(COSTLY, rows=3)) == [2, 0, 4]


def test_rows_that_fill_a_shape_are_padding() -> None:
    few = BatchLimits(tokens=512, rows=16, bucket_shapes=True)
    assert [few.rows_of(texts) for texts in (1, 3, 4, 5, 7, 9, 13, 16)] == [
        *(1, 3, 4, 6, 8, 12, 16, 16)
    ]
    assert (
        len(choose_batch([8] * 5, few)) == 4
    )  # and the fifth by itself: a row of padding costs more
    assert len(choose_batch([8] * 5, replace(few, breakeven_tokens=8))) == 5
    assert len(choose_batch([8] * 8, few)) == 8


@given(lengths, limits)
def test_the_oldest_is_read_and_limits_hold(lengths: list[int], limits: BatchLimits) -> None:
    chosen = choose_batch(lengths, limits)
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen) <= limits.rows
    batch = [lengths[index] for index in chosen]
    assert batch == sorted(batch)
    assert limits.rows_of(len(batch)) * limits.columns(max(batch)) <= limits.tokens


@given(lengths, limits)
def test_all_are_read_in_as_many_passes_as_there_are_texts_at_most(
    lengths: list[int], limits: BatchLimits
) -> None:
    passes, waiting = 0, lengths
    while waiting:
        chosen = set(choose_batch(waiting, limits))
        waiting = [length for index, length in enumerate(waiting) if index not in chosen]
        passes += 1
    assert passes <= len(lengths)


@given(lengths, limits)
def test_requests_of_one_text_share_the_passes_of_a_search_in_order_of_arrival(
    lengths: list[int], limits: BatchLimits
) -> None:
    texts = queue(lengths, limits)
    waiting = list(range(len(lengths)))
    while waiting:
        batch = [waiting[i] for i in searched_batch([lengths[key] for key in waiting], limits)]
        assert texts.take_batch() == batch
        waiting = [key for key in waiting if key not in batch]
        assert (len(texts), texts.tokens) == (len(waiting), sum(lengths[key] for key in waiting))
        assert texts.oldest == (waiting[0] if waiting else None)


@given(lengths, st.lists(st.integers(0, 39)))
def test_a_text_that_was_removed_is_in_no_batch(lengths: list[int], removed: list[int]) -> None:
    texts = queue(lengths, COSTLY)
    for key in removed:
        texts.remove(key)
    batches = []
    while len(texts):
        batches += texts.take_batch()
    assert sorted(batches) == [key for key in range(len(lengths)) if key not in removed]
    assert texts.tokens == 0


def test_an_empty_queue_has_no_batch() -> None:
    with pytest.raises(LookupError):
        TextQueue(LIMITS).take_batch()


# Fairness between requests

SERVED = BatchLimits(tokens=4096, rows=64, breakeven_tokens=200, bucket_shapes=True)
CALLERS, TEXTS = 32, 256


def crowded(chance: random.Random) -> TextQueue:
    """Return a queue with a list of texts of any lengths from each caller."""
    texts = TextQueue(SERVED)
    for key in range(CALLERS * TEXTS):
        texts.add(key, chance.randint(2, 400), request=key // TEXTS)
    return texts


@pytest.mark.parametrize("length", [4, 50, 400])
def test_a_lone_text_is_in_the_next_pass_or_the_one_after(length: int) -> None:
    texts = crowded(random.Random(1))
    for lone in range(100_000, 100_100):
        texts.add(lone, length)
        assert lone in [*texts.take_batch(), *texts.take_batch()]


def test_fairness_costs_no_forward_passes() -> None:
    fair, in_order = crowded(random.Random(2)), TextQueue(SERVED)
    chance = random.Random(2)
    for key in range(CALLERS * TEXTS):
        in_order.add(key, chance.randint(2, 400))  # the same texts, as if each were a request
    assert passes(fair) <= 1.02 * passes(in_order)


def passes(texts: TextQueue) -> int:
    count = 0
    while len(texts):
        texts.take_batch()
        count += 1
    return count


def test_lone_texts_do_not_keep_a_list_waiting_for_ever() -> None:
    texts = TextQueue(replace(LIMITS, rows=1))
    for key in range(10):
        texts.add(key, 8, request=1)
    batches = []
    for lone in range(1000, 1100):
        texts.add(lone, 8)
        batches += texts.take_batch()
    assert set(range(10)) < set(batches)
