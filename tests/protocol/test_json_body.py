from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_keys, parse_document, require_type
from predictor.sentences import quote

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body is not valid JSON at line 1, column 1."),
        (b'{"a": 1', "The body is not valid JSON at line 1, column 8."),
        (b'{"a":\n oops}', "The body is not valid JSON at line 2, column 2."),
        (b'{"a": 1} x', "The body is not valid JSON at line 1, column 10."),
        (b'{"a": "\xff"}', "The body is not valid UTF-8 at byte 7."),
        ('{"a": 1}'.encode("utf-16"), "The body is not valid UTF-8 at byte 0."),
        (b"[]", "The body must be an object, not a list."),
        (b"null", "The body must be an object, not null."),
        (b'"x"', "The body must be an object, not a string."),
        (b"3", "The body must be an object, not an integer."),
        (b'{"a": NaN}', "The body has NaN, which is not a JSON number."),
        (b'{"a": -Infinity}', "The body has -Infinity, which is not a JSON number."),
        (b'{"a": 1e999}', "The body has a number that is too large."),
        (b'{"a": ' + b"9" * 10_000 + b"}", "The body has an integer of more than 64 digits."),
        (
            b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "The body's JSON is nested too deeply.",
        ),
        (b'{"a": "\\ud800"}', "The body has half of a surrogate pair in a string."),
        (b'{"\\uDC00": 1}', "The body has half of a surrogate pair in a string."),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_in_one_sentence(
    body: bytes, sentence: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_document(body)
    assert str(refusal.value) == sentence


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert parse_document(b'{"a": "\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


@given(st.dictionaries(st.text(), _JSON))
def test_every_json_object_is_read_as_it_was_written(document: dict[str, object]) -> None:
    assert parse_document(json.dumps(document).encode()) == document


@given(st.binary())
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(parse_document(body), dict)


def test_a_boolean_is_no_integer() -> None:
    with pytest.raises(RequestError, match=r"^size must be an integer, not a boolean.$"):
        require_type(True, int, "size")


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(RequestError) as refusal:
        check_keys(["instnces"], ["instances", "parameters"], "the body")
    assert str(refusal.value) == "Unknown key 'instnces' in the body; did you mean 'instances'?"


def test_an_unknown_key_near_nothing_is_refused_with_all_that_is_known() -> None:
    with pytest.raises(RequestError, match="known are instances, parameters"):
        check_keys(["zzz"], ["instances", "parameters"], "the body")


def test_a_long_name_is_quoted_short() -> None:
    assert len(quote("x" * 1000)) == 66
