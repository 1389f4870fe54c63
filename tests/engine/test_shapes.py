"""What columns are rounded up to."""

from __future__ import annotations

from predictor.engine.shapes import rounded


def test_rounding_never_loses_a_column_and_pads_an_eighth_at_most() -> None:
    for count in range(1, 10_000):
        assert count <= rounded(count) <= count * 9 / 8
        assert rounded(rounded(count)) == rounded(count)


def test_there_are_some_dozens_of_shapes() -> None:
    assert rounded(33) == 36
    assert rounded(1000) == 1024
    assert len({rounded(count) for count in range(1, 513)}) == 56
