"""The form of an error on each HTTP path: one sentence everywhere, in six wrappings.

On OpenAI's paths clients expect its object with a type and a code, on Anthropic's theirs. The
generate extension has statuses of its own for two kinds of errors. TorchServe's paths have its
object with the name of a Java exception, and 503 for a full queue. Text Generation Inference has
the generate extension's statuses, and the type of an error beside its sentence. Everything else is
V1's and V2's.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from predictor.errors import (
    GenerationFailed,
    Overloaded,
    PromptTooLong,
    Unauthorized,
    UnknownModel,
    UnknownVersion,
)
from predictor.protocol.http.errors import error_headers, http_error
from predictor.protocol.http.json_body import JSONAnswer

_GENERATE = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/generate(_stream)?")
_TORCHSERVE = re.compile(r"/(predictions|explanations|models)(/.*)?|/ping|/invocations")
_TGI = ("/", "/generate", "/generate_stream", "/info")
_APIS = {
    "generate": "tgi",
    "generate_stream": "tgi",
    "info": "tgi",
    "v1": "v1",
    "v2": "v2",
    "embed": "tei",
    "rerank": "tei",
    "predict": "tei",
}
_CODES: dict[type[Exception], str] = {
    UnknownModel: "model_not_found",
    Unauthorized: "invalid_api_key",
    PromptTooLong: "context_length_exceeded",
    Overloaded: "rate_limit_exceeded",
}
_JAVA_NAMES = {
    HTTPStatus.BAD_REQUEST: "BadRequestException",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "BadRequestException",
    HTTPStatus.NOT_FOUND: "ResourceNotFoundException",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowedException",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestEntityTooLargeException",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableException",
    HTTPStatus.REQUEST_TIMEOUT: "RequestTimeoutException",
    HTTPStatus.GATEWAY_TIMEOUT: "RequestTimeoutException",
}
_TGI_TYPES = {
    HTTPStatus.FAILED_DEPENDENCY: "generation",
    HTTPStatus.TOO_MANY_REQUESTS: "overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE: "healthcheck",
}
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout",
}


_ANTHROPICS = "/v1/messages"
_ANTHROPICS_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


def api_of(path: str) -> str:
    """Return the API of a path, as metrics name it."""
    if _GENERATE.fullmatch(path):
        return "generate"
    if _TORCHSERVE.fullmatch(path):
        return "torchserve"
    if is_anthropics(path):
        return "anthropic"
    if _is_openais(path):
        return "openai"
    first = path.split("/", 2)[1]
    return _APIS.get(first, "other")


def error_response(path: str, exception: Exception) -> JSONAnswer:
    """Return the response to an exception on a path; log an error of the server."""
    status, sentence = http_error(exception)
    headers = error_headers(exception)
    if _TORCHSERVE.fullmatch(path):
        if isinstance(exception, Overloaded):
            status = HTTPStatus.SERVICE_UNAVAILABLE
        kind = _java_name(status, exception)
        body = {"code": status, "type": kind, "message": sentence}
        return JSONAnswer(body, status, headers)
    if is_anthropics(path):
        return JSONAnswer(anthropic_error(status, sentence), status, headers)
    if _is_openais(path):
        code = next((code for kind, code in _CODES.items() if isinstance(exception, kind)), None)
        return JSONAnswer(openai_error(status, sentence, code), status, headers)
    if _GENERATE.fullmatch(path) or path in _TGI:
        status = _generate_status(status, exception)
    if path in _TGI:
        return JSONAnswer(tgi_error(status, sentence), status, headers)
    return JSONAnswer({"error": sentence}, status, headers)


def openai_error(status: int, sentence: str, code: str | None = None) -> dict[str, object]:
    """Return an error in OpenAI's form; ``param`` is always null, the sentence names the key."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = next((name for code, name in _TYPES.items() if code == status), kind)
    return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def tgi_error(status: int, sentence: str) -> dict[str, object]:
    """Return an error in Text Generation Inference's form."""
    kind = "validation" if status < 500 else "incomplete_generation"
    kind = next((name for code, name in _TGI_TYPES.items() if code == status), kind)
    return {"error": sentence, "error_type": kind}


def anthropic_error(status: int, sentence: str) -> dict[str, object]:
    """Return an error in Anthropic's form."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    kind = next((name for code, name in _ANTHROPICS_TYPES.items() if code == status), kind)
    return {"type": "error", "error": {"type": kind, "message": sentence}}


def is_anthropics(path: str) -> bool:
    """Return whether a path is of Anthropic's API."""
    return f"{path}/".startswith(f"{_ANTHROPICS}/")


def _is_openais(path: str) -> bool:
    """Return whether a path is OpenAI's, or one of vLLM's for tokens.

    OpenAI's are those below ``/openai``, below ``/v1`` of any prefix, and below ``/v1`` but for
    V1's models. The client chooses the path, so no pattern is tried at each of its characters.
    """
    below = f"{path}/"
    if below.startswith("/v1/"):
        return not below.startswith("/v1/models/")
    if below.startswith("/openai/") or path in ("/tokenize", "/detokenize"):
        return True
    return not below.startswith("/v2/") and "/v1/" in below[2:]


def _java_name(status: int, exception: Exception) -> str:
    """Return TorchServe's name of an error (``ErrorResponse``)."""
    if isinstance(exception, UnknownVersion):
        return "ModelVersionNotFoundException"
    if isinstance(exception, UnknownModel):
        return "ModelNotFoundException"
    named = (name for code, name in _JAVA_NAMES.items() if code == status)
    return next(named, "InternalServerException")


def _generate_status(status: int, exception: Exception) -> int:
    """Return the status by ``generate_rest.yaml``: 422 is bad input, 424 a failed generation."""
    if isinstance(exception, GenerationFailed):
        return HTTPStatus.FAILED_DEPENDENCY
    return HTTPStatus.UNPROCESSABLE_ENTITY if status == HTTPStatus.BAD_REQUEST else status
