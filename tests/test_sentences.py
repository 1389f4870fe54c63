from __future__ import annotations

import pytest

from predictor.sentences import quote, shorten


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [("four", 4, "four"), ("fives", 4, "fiv…"), ("", 4, ""), ("x" * 9, 1, "…")],
)
def test_a_text_is_cut_only_where_it_is_too_long(text: str, limit: int, shown: str) -> None:
    assert shorten(text, limit) == shown


def test_the_mark_of_a_cut_may_be_another_or_none() -> None:
    assert shorten("123456", 5, ellipsis="...") == "12..."
    assert shorten("123456", 5, ellipsis="") == "12345"


def test_a_name_is_quoted_after_it_is_cut() -> None:
    assert quote("it's\n") == '"it\'s\\n"'
    assert quote("n" * 65) == repr("n" * 63 + "…")
    assert quote("n" * 65, ellipsis="") == repr("n" * 64)
