"""What columns are rounded up to."""

from __future__ import annotations

from predictor.engine.shapes import all_columns, new_columns


def test_rounding_never_loses_a_column_and_pads_few() -> None:
    for count in range(1, 10_000):
        assert count <= new_columns(count) <= max(count + 7, count * 9 / 8)
        assert count <= all_columns(count) <= max(count + 63, count * 9 / 8)
        assert new_columns(count) <= all_columns(count)


def test_one_token_is_not_padded() -> None:
    assert new_columns(1) == 1


def test_there_are_some_dozens_of_shapes() -> None:
    assert [new_columns(count) for count in (2, 33, 130)] == [8, 40, 144]
    assert [all_columns(count) for count in (1, 65, 1100)] == [64, 128, 1152]
    assert len({new_columns(count) for count in range(1, 513)}) == 33
    assert len({all_columns(count) for count in range(1, 4097)}) == 32
