"""The order of lines, by their shapes."""

from __future__ import annotations

import pytest

from predictor.batch.order import DEFAULT_NEW_TOKENS, LineShape, ordered, shape_of


def shape(size=400, **body):
    return shape_of({"body": body}, size)


def test_the_longest_lines_go_first_and_equal_ones_in_their_order():
    assert ordered([LineShape(3), LineShape(9), LineShape(3), LineShape(5)]) == [1, 3, 0, 2]


def test_lines_that_begin_alike_go_together_where_the_longest_of_them_goes():
    shapes = [
        LineShape(3, prefix=7),
        LineShape(8),
        LineShape(9, prefix=7),
        LineShape(5, prefix=1),
        LineShape(4, prefix=7),
    ]

    assert ordered(shapes) == [2, 4, 0, 1, 3]


def test_a_prompt_and_its_reply_count():
    assert shape(prompt="x", max_tokens=30).tokens == 100 + 30
    assert shape(messages=[], max_completion_tokens=7, max_tokens=30).tokens == 100 + 7
    assert shape(prompt="x").tokens == 100 + DEFAULT_NEW_TOKENS
    assert shape(input="x").tokens == 100
    assert shape(input="x", max_output_tokens=9).tokens == 100 + 9


def test_replies_and_prompts_are_sequences():
    assert shape(prompt="x", n=3).sequences == 3
    assert shape(prompt=["x", "y"], n=3, best_of=4).sequences == 8
    assert shape(prompt=[1, 2, 3]).sequences == 1
    assert shape(input=["x", "y"]).sequences == 2
    assert shape(query="x", documents=["x", "y", "z"]).sequences == 3


def test_prompts_of_one_model_begin_alike_by_their_first_characters():
    long = "x" * 256

    assert shape(model="m", prompt=long + "a").prefix == shape(model="m", prompt=long + "b").prefix
    assert shape(model="m", prompt=long).prefix != shape(model="n", prompt=long).prefix
    assert shape(model="m", prompt="a").prefix != shape(model="m", prompt="b").prefix
    assert shape(model="m", input="a").prefix is None


def test_conversations_begin_alike_by_the_whole_message_of_the_system():
    def chat(system, user="hi"):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return shape(model="m", messages=messages).prefix

    assert chat("s" * 300, "one") == chat("s" * 300, "two")
    assert chat("s" * 300 + "1") != chat("s" * 300 + "2")
    assert shape(instructions="a", input="x").prefix == shape(instructions="a", input="y").prefix


def test_log_probabilities_of_a_prompt_make_a_line_heavier():
    assert shape(prompt="a", n=4).weight == shape(prompt="a", logprobs=5).weight == 1
    assert shape(prompt="a", prompt_logprobs=0).weight == 17
    assert shape(prompt="a", echo=True, logprobs=1, n=2).weight == 54
    assert shape(messages=[], prompt_logprobs=-5).weight == 17


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"body": 3},
        {"body": {"messages": [1]}},
        {"body": {"messages": {}, "n": "x", "max_tokens": None}},
        {"body": {"prompt": "\ud800", "n": -5}},
        {"body": {"messages": [{"content": [{"type": "text"}]}], "n": True}},
    ],
)
def test_anything_has_a_shape(document):
    assert shape_of(document, 40).sequences >= 1
    assert shape_of(document, 40).tokens >= 10
