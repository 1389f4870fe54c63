"""Java's properties, as ``java.util.Properties.load`` documents them."""

from __future__ import annotations

import pytest

from predictor.migration.properties import parse_properties


@pytest.mark.parametrize(
    ("text", "properties"),
    [
        ("a=b", {"a": "b"}),
        ("a:b", {"a": "b"}),
        ("a b", {"a": "b"}),
        (" \t a \t = \t b c ", {"a": "b c "}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("a==b", {"a": "=b"}),
        ("# a=b\n! c=d\n\n  # e\nf=g#h", {"f": "g#h"}),
        ("a=b\r\nc=d\re=f", {"a": "b", "c": "d", "e": "f"}),
        ("a=b\\\n    c", {"a": "bc"}),
        ("a=b\\\n# c", {"a": "b# c"}),
        ("a=b\\\\\nc=d", {"a": "b\\", "c": "d"}),
        ("a=b\\", {"a": "b"}),
        ("a\\=b=c", {"a=b": "c"}),
        ("a\\ b=c", {"a b": "c"}),
        ("a=\\t\\n\\x\\u00e9", {"a": "\t\nx\xe9"}),
        ("a=\\\\u12", {"a": "\\u12"}),
        ("a=1\na=2", {"a": "2"}),
        ("", {}),
    ],
)
def test_a_file_is_parsed_as_by_java(text: str, properties: dict[str, str]) -> None:
    assert parse_properties(text) == properties


@pytest.mark.parametrize("text", ["a=\\u12", "a=\\uwxyz", "a=\\\\\\u1"])
def test_an_escape_that_is_cut_short_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="without four digits"):
        parse_properties(text)


def test_a_snapshot_as_torchserve_writes_it_is_one_value() -> None:
    text = 'model_snapshot={\\n  "name"\\: "startup.cfg",\\n  "modelCount"\\: 1\\n}\n'

    assert parse_properties(text) == {
        "model_snapshot": '{\n  "name": "startup.cfg",\n  "modelCount": 1\n}'
    }
