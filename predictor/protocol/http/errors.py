"""The translation of exceptions into HTTP and gRPC statuses, one for each.

A client sees only errors that were raised on purpose: our own, those of the SDK about a call, and
the framework's. Any other becomes one neutral sentence; its traceback is logged here, as the
sentence promises.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

import grpc
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from predictor.errors import (
    NotReady,
    Overloaded,
    PredictorError,
    RequestError,
    Unauthorized,
    UnknownModel,
)
from predictor.protocol import sdk
from predictor.sentences import MAX_NAME, shorten

NEUTRAL = "Internal error; the server's log has the cause."
"""The sentence for an unexpected error."""

_LONGEST = 500
"""Characters of a sentence. gRPC sends it percent-encoded (up to 12 bytes for one character) in the
trailers, and clients refuse more than 8 KiB of those."""

_WORDS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not take this method.",
}

_log = logging.getLogger(__name__)


def http_error(exception: Exception) -> tuple[int, str]:
    """Return the HTTP status and the sentence; log an error of the server."""
    if isinstance(exception, HTTPException):
        return exception.status_code, shorten(_http_words(exception), _LONGEST)
    error = _logged(exception)
    return error.http_status, shorten(str(error), _LONGEST)


def error_headers(exception: Exception) -> dict[str, str] | None:
    """Return the HTTP headers that go with an exception."""
    if isinstance(exception, Overloaded):
        return {"Retry-After": str(exception.retry_after)}
    if isinstance(exception, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return dict(exception.headers or {}) if isinstance(exception, HTTPException) else None


def grpc_error(exception: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the gRPC status and the sentence; log an error of the server."""
    error = _logged(exception)
    return grpc.StatusCode[error.grpc_code], shorten(str(error), _LONGEST)


def _logged(exception: Exception) -> PredictorError:
    error = _as_predictor_error(exception)
    if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("A request failed.", exc_info=exception)
    return error


def _as_predictor_error(exception: Exception) -> PredictorError:
    if isinstance(exception, PredictorError):
        return exception
    if isinstance(exception, sdk.ModelNotFound):
        return UnknownModel(str(exception))
    if isinstance(exception, sdk.ModelNotReady | sdk.ServerNotReady | sdk.ServerNotLive):
        return NotReady(str(exception))
    if isinstance(exception, sdk.InvalidInput):
        return RequestError(str(exception))
    if isinstance(exception, RequestValidationError):
        return RequestError(_validation_words(exception))
    return PredictorError(NEUTRAL)


def _http_words(exception: HTTPException) -> str:
    status = HTTPStatus(exception.status_code)
    if exception.detail == status.phrase:
        return _WORDS.get(status, f"{status.phrase}.")
    return str(exception.detail)


def _validation_words(exception: RequestValidationError) -> str:
    problems = exception.errors()
    if not problems:
        return "The request does not have the form that this path takes."
    where = ".".join(str(part) for part in problems[0].get("loc", ())) or "body"
    return f"{shorten(where, MAX_NAME, ellipsis='')} is missing or is not what this path takes."
