"""The generator: how blocks are found, and how outputs are written and compared."""

from __future__ import annotations

import pytest

from docs.generator.blocks import Command, commands, rewrite
from docs.generator.examples import _LONGEST_LINE, _json, is_same, presented

PAGE = """
```console
$ one
old
$ two \\
    more
```

<!-- server: other -->

```python
print(1)
```

```text
old
```
"""


def test_commands_are_found_with_their_servers_and_outputs() -> None:
    assert list(commands(PAGE)) == [
        Command("demo", "one", "old"),
        Command("demo", "two \\\n    more", ""),
        Command("other", "print(1)\n", "old", is_program=True),
    ]


def test_a_command_ends_where_its_quotes_are_closed() -> None:
    page = "```console\n$ curl -d '{\n  \"a\": 1\n}'\n{\n}\n$ next\n```"
    assert [(one.text, one.output) for one in commands(page)] == [
        ("curl -d '{\n  \"a\": 1\n}'", "{\n}"),
        ("next", ""),
    ]


def test_outputs_are_replaced_and_the_rest_of_a_page_stays() -> None:
    fresh = rewrite(PAGE, lambda command: command.output and "new")
    assert fresh == PAGE.replace("old", "new")
    assert rewrite(PAGE, lambda command: command.output) == PAGE


def test_a_response_is_indented_where_it_is_long() -> None:
    assert presented('{"a":1}') == '{"a": 1}'
    assert presented('{"a":"%s","b":[1,2]}' % ("x" * 96)) == (
        '{\n  "a": "%s",\n  "b": [1, 2]\n}' % ("x" * 96)
    )


def test_long_vectors_are_cut() -> None:
    assert presented(str([0.5] * 384)) == "[0.5, 0.5, 0.5, 0.5, ... 384 numbers]"


def test_values_of_one_run_are_replaced() -> None:
    response = f'{{"id": "cmpl-{"0af3" * 8}", "created": 1}}'
    assert presented(response) == f'{{"id": "cmpl-{"0" * 31}1", "created": 1790000000}}'
    assert presented(f"data: {response}\n\ndata: [DONE]") == (
        f'data: {{"id": "cmpl-{"0" * 31}1", "created": 1790000000}}\n\ndata: [DONE]'
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"score": 0.991}', '{"score": 0.9911}', True),
        ('{"score": 0.991}', '{"score": 0.8}', False),
        ('{"score": 0.991}', '{"scores": 0.991}', False),
        ('{"tokens": 3}', '{"tokens": 4}', False),
        ("[0.1, 0.2]", "[0.1]", False),
    ],
)
def test_outputs_may_differ_in_the_last_digits_of_fractions(
    one: str, other: str, same: bool
) -> None:
    assert is_same(one, other) is same


@pytest.mark.parametrize("digits", [0.072, 0.07195])
def test_lines_do_not_depend_on_the_digits_of_fractions(digits: float) -> None:
    for length in range(_LONGEST_LINE):
        value = {"scores": [digits, 0.9458], "label": "x" * length}
        assert _json(value).count("\n") == _json({**value, "scores": [0.1, 0.9]}).count("\n")
