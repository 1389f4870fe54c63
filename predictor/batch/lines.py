"""The lines of OpenAI's batch format: a request in each line, and a result for each.

The source is OpenAI's API reference, "The request input object" and "The request output object" of
the Batch API. The id of a result has the number of the request's line and a digest of the line.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_nesting, parse_json, require_type
from predictor.sentences import quote

_MAX_ID = 512
"""Characters of a `custom_id`, which the output repeats."""

_RESULT = re.compile(rb'\{"id":"batch_req_([1-9]\d{0,14})_([0-9a-f]{8})",')
_DIGEST_BYTES = 4
_ANSWERED = b'"response":{"status_code":200,'
"""In a line of results alone: within a string its quotation marks are escaped."""


@dataclass(frozen=True, slots=True)
class LineRequest:
    """The request of a line.

    Attributes:
        url: The path of an endpoint.
        body: The body, as JSON.
    """

    url: str
    body: bytes


@dataclass(frozen=True, slots=True)
class LineResponse:
    """The response to a request.

    Attributes:
        status: Its HTTP status.
        request_id: The id of the request, as the log has it.
        body: Its body, as JSON.
    """

    status: int
    request_id: str
    body: bytes

    @property
    def is_ok(self) -> bool:
        """Whether the request was answered."""
        return self.status == HTTPStatus.OK


def digest_of(line: bytes) -> str:
    """Return the digest of a line, which tells whether a result belongs to it."""
    return hashlib.blake2b(line.strip(), digest_size=_DIGEST_BYTES).hexdigest()


def decode_line(line: bytes) -> tuple[str | None, LineRequest | RequestError]:
    """Return the `custom_id` of a line, if it can be read, and the request or what is wrong.

    Args:
        line: The line.
    """
    custom_id: str | None = None
    try:
        document = require_type(_parse(line), dict, "A line")
        custom_id = _custom_id(document)
        check_nesting(document)
        return custom_id, _request(document)
    except RequestError as error:
        return custom_id, error


def encode_response(
    number: int, digest: str, custom_id: str | None, response: LineResponse
) -> bytes:
    """Return the line of the output for a request that an endpoint has answered.

    Args:
        number: The number of the request's line, from 1.
        digest: See `digest_of`.
        custom_id: The request's own id.
        response: The response, with whatever status.
    """
    content = {
        "status_code": response.status,
        "request_id": response.request_id,
        "body": orjson.Fragment(response.body),
    }
    return _encode(number, digest, custom_id, content, None)


def encode_error(
    number: int, digest: str, custom_id: str | None, sentence: str, code: str = "invalid_request"
) -> bytes:
    """Return the line of the output for a line that is no request; see `encode_response`."""
    return _encode(number, digest, custom_id, None, {"code": code, "message": sentence})


def result_key(line: bytes) -> tuple[int, str] | None:
    """Return the number and the digest of the request of an output's line; None if it has none."""
    match = _RESULT.match(line)
    if match is None or not line.endswith(b"}\n"):
        return None
    return int(match[1]), match[2].decode()


def is_answered(line: bytes) -> bool:
    """Return whether a line of an output is the answer to a request, and no error."""
    return _ANSWERED in line


def _encode(
    number: int,
    digest: str,
    custom_id: str | None,
    response: dict[str, object] | None,
    error: dict[str, str] | None,
) -> bytes:
    document = {
        "id": f"batch_req_{number}_{digest}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return orjson.dumps(document) + b"\n"


def _parse(line: bytes) -> object:
    try:
        return parse_json(line)
    except RequestError as error:
        sentence = str(error).replace("The body", "The line").replace(" at line 1, ", " at ")
        raise RequestError(sentence) from None


def _custom_id(document: dict[str, object]) -> str:
    if "custom_id" not in document:
        raise RequestError("The line has no 'custom_id'.")
    custom_id = require_type(document["custom_id"], str, "custom_id")
    if not 0 < len(custom_id) <= _MAX_ID:
        raise RequestError(f"custom_id must have 1 to {_MAX_ID} characters.")
    return custom_id


def _request(document: dict[str, object]) -> LineRequest:
    for name in ("method", "url", "body"):
        if name not in document:
            raise RequestError(f"The line has no {name!r}.")
    if document["method"] != "POST":
        raise RequestError("method must be 'POST'.")
    url = require_type(document["url"], str, "url")
    body = require_type(document["body"], dict, "body")
    if body.get("stream") is True:
        raise RequestError(f"stream must not be set in a batch; {quote(url)} answers as a whole.")
    return LineRequest(url, _dumped(body))


def _dumped(body: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(body, ensure_ascii=False).encode()
