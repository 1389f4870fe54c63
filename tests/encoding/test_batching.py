"""Which texts are read together, as arithmetic."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from predictor.engine.encoding.batching import BatchLimits, choose_batch

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
