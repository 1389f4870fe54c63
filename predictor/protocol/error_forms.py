"""The form of an error on each HTTP path: one sentence everywhere, in three wrappings.

Below ``/openai`` clients expect OpenAI's object with a type and a code. The generate extension has
statuses of its own for two kinds of errors. Everything else is V1's and V2's.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from starlette.responses import JSONResponse

from predictor.errors import GenerationFailed, Overloaded, PromptTooLong, UnknownModel
from predictor.protocol.errors import error_headers, http_error

_GENERATE = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/generate(_stream)?")
_CODES: dict[type[Exception], str] = {
    UnknownModel: "model_not_found",
    PromptTooLong: "context_length_exceeded",
    Overloaded: "rate_limit_exceeded",
}
_TYPES = {
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout",
}


def error_response(path: str, exception: Exception) -> JSONResponse:
    """Returns the response to an exception on a path; logs what is the server's fault."""
    status, sentence = http_error(exception)
    headers = error_headers(exception)
    if path == "/openai" or path.startswith("/openai/"):
        code = next((code for kind, code in _CODES.items() if isinstance(exception, kind)), None)
        return JSONResponse(openai_error(status, sentence, code), status, headers)
    if _GENERATE.fullmatch(path):
        status = _generate_status(status, exception)
    return JSONResponse({"error": sentence}, status, headers)


def openai_error(status: int, sentence: str, code: str | None = None) -> dict[str, object]:
    """Returns an error as OpenAI says it; ``param`` is always null, the sentence names the key."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = next((name for known, name in _TYPES.items() if known == status), kind)
    return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def _generate_status(status: int, exception: Exception) -> int:
    """Returns the status by ``generate_rest.yaml``: 422 is bad input, 424 a failed generation."""
    if isinstance(exception, GenerationFailed):
        return HTTPStatus.FAILED_DEPENDENCY
    return HTTPStatus.UNPROCESSABLE_ENTITY if status == HTTPStatus.BAD_REQUEST else status
