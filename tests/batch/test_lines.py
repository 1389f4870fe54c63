"""Lines of OpenAI's batch format, and what is wrong with others."""

from __future__ import annotations

import json

import pytest

from predictor.batch.lines import (
    LineRequest,
    LineResponse,
    decode_line,
    digest_of,
    encode_error,
    encode_response,
    result_key,
)
from predictor.errors import RequestError

COMPLETIONS = "/v1/completions"


def line(**changes):
    whole = {"custom_id": "a", "method": "POST", "url": COMPLETIONS, "body": {"prompt": "x"}}
    document = {key: value for key, value in (whole | changes).items() if value is not ...}
    return json.dumps(document).encode()


def test_a_line_has_the_body_of_a_call():
    custom_id, request = decode_line(line(body={"model": "m", "temperature": 0.1}))

    assert custom_id == "a"
    assert request == LineRequest(COMPLETIONS, b'{"model":"m","temperature":0.1}')


def test_a_body_keeps_integers_that_are_too_large_for_most_parsers():
    _, request = decode_line(line(body={"seed": 2**70}))

    assert json.loads(request.body) == {"seed": 2**70}


@pytest.mark.parametrize(
    ("raw", "custom_id", "sentence"),
    [
        (b"{", None, "The line is not valid JSON at column 2."),
        (b"[1]", None, "A line must be an object, not a list."),
        (b"\xff", None, "The line is not valid UTF-8 at byte 0."),
        (b"NaN", None, "The line has NaN, which is not a JSON number."),
        (line(custom_id=...), None, "The line has no 'custom_id'."),
        (line(custom_id=7), None, "custom_id must be a string, not an integer."),
        (line(custom_id=""), None, "custom_id must have 1 to 512 characters."),
        (line(custom_id="x" * 513), None, "custom_id must have 1 to 512 characters."),
        (line(method=...), "a", "The line has no 'method'."),
        (line(method="GET"), "a", "method must be 'POST'."),
        (line(url=...), "a", "The line has no 'url'."),
        (line(url=[]), "a", "url must be a string, not a list."),
        (line(body=...), "a", "The line has no 'body'."),
        (line(body="x"), "a", "body must be an object, not a string."),
        (
            line(body={"stream": True}),
            "a",
            "stream must not be set in a batch; '/v1/completions' answers as a whole.",
        ),
        (
            b'{"custom_id":"a","body":' + b"[" * 300 + b"]" * 300 + b"}",
            "a",
            "The body's JSON is nested too deeply: at most 255 levels are accepted.",
        ),
        (b"[" * 100_000, None, "The line's JSON is nested too deeply."),
    ],
    ids=range(17),
)
def test_what_is_wrong_with_a_line_is_a_sentence_and_its_custom_id_stays(raw, custom_id, sentence):
    own, error = decode_line(raw)

    assert own == custom_id
    assert isinstance(error, RequestError)
    assert str(error) == sentence


def test_a_result_has_openais_form_and_the_key_of_its_line():
    digest = digest_of(line())
    text = encode_response(12, digest, "a", LineResponse(200, "r-1", b'{"x":[1.50]}'))

    assert result_key(text) == (12, digest)
    assert json.loads(text) == {
        "id": f"batch_req_12_{digest}",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "r-1", "body": {"x": [1.5]}},
        "error": None,
    }


def test_an_error_has_openais_form_and_the_key_of_its_line():
    text = encode_error(3, "00c0ffee", None, 'No "x".')

    assert result_key(text) == (3, "00c0ffee")
    assert json.loads(text)["error"] == {"code": "invalid_request", "message": 'No "x".'}
    assert json.loads(text)["response"] is None


@pytest.mark.parametrize(
    "text",
    [
        b"\n",
        b'{"id":"batch_req_0_00c0ffee","custom_id":null}\n',
        b'{"id":"batch_req_1_00c0ffe","custom_id":null}\n',
        b'{"id":"batch_req_1_00c0ffee","custom_id":nu\n',
        b'{"id":"batch_req_9999999999999999_00c0ffee","custom_id":null}\n',
    ],
)
def test_other_lines_have_no_key(text):
    assert result_key(text) is None
