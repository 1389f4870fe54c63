"""What columns are rounded up to."""

from __future__ import annotations

from predictor.shape_buckets import bucket_context, bucket_new_tokens


def test_rounding_never_loses_a_column_and_pads_few() -> None:
    for count in range(1, 10_000):
        assert count <= bucket_new_tokens(count) <= max(count + 7, count * 9 / 8)
        assert count <= bucket_context(count) <= max(count + 63, count * 9 / 8)
        assert bucket_new_tokens(count) <= bucket_context(count)


def test_one_token_is_not_padded() -> None:
    assert bucket_new_tokens(1) == 1


def test_there_are_some_dozens_of_shapes() -> None:
    assert [bucket_new_tokens(count) for count in (2, 33, 130)] == [8, 40, 144]
    assert [bucket_context(count) for count in (1, 65, 1100)] == [64, 128, 1152]
    assert len({bucket_new_tokens(count) for count in range(1, 513)}) == 33
    assert len({bucket_context(count) for count in range(1, 4097)}) == 32
