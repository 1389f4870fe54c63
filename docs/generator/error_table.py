"""Describe every error as each API reports it, by asking the code that translates errors."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from predictor import errors
from predictor.protocol.http.error_forms import error_response

_ARGUMENTS: dict[type[errors.PredictorError], dict[str, Any]] = {
    errors.DoesNotFit: {"tier": "gpu", "needed": 0, "available": 0, "remedies": ()},
    errors.PromptTooLong: {"tokens": 0, "limit": 0},
    errors.Overloaded: {"retry_after": 1},
}
_NEVER_SENT = (errors.PredictorError, errors.LoadFailed)
"""Errors that end the process before a client can see them, and the base class."""

_PATHS = (
    *("/v2/models/demo/infer", "/openai/v1", "/v2/models/demo/generate", "/predictions/demo"),
    "/generate",
)

_EXIT_CAUSES = {
    0: "The server drained after the first SIGTERM or SIGINT, or the command succeeded.",
    1: "Any other failure. A restart may help.",
    65: "`import-torchserve`: the archive is broken, incomplete or unsafe (`EX_DATAERR`).",
    69: "The hub cannot be reached, and its cache lacks files of the model (`EX_UNAVAILABLE`).",
    78: "Configuration, a checkpoint that cannot be served, or a model that does not fit or cannot "
    "compute. "
    "A restart does not help (`EX_CONFIG`).",
    130: "SIGINT during loading, a second one, or one to `batch` (128 + 2).",
    143: "SIGTERM during loading, a second one, or one to `batch` (128 + 15).",
}


def error_classes() -> list[type[errors.PredictorError]]:
    """Return all errors that the predictor raises on purpose, in the order of their module."""
    return [
        one
        for one in vars(errors).values()
        if inspect.isclass(one) and issubclass(one, errors.PredictorError)
    ]


def error_rows() -> Iterator[Sequence[str]]:
    """Yield the row of each error that a client can receive."""
    for kind in error_classes():
        if kind.exit_code != 1 or kind in _NEVER_SENT:
            continue
        error = kind("A sentence.", **_ARGUMENTS.get(kind, {}))
        plain, openai, generate, torchserve, tgi = _responses(error)
        about = json.loads(openai.body)["error"]
        java = json.loads(torchserve.body)
        yield (
            f"`{kind.__name__}`",
            str(plain.status_code),
            f"`{kind.grpc_code}`",
            f"`{about['type']}`" + (f", `{about['code']}`" if about["code"] else ""),
            str(generate.status_code),
            f"{torchserve.status_code} `{java['type']}`",
            f"{tgi.status_code} `{json.loads(tgi.body)['error_type']}`",
            _summary(kind),
        )


def _responses(error: errors.PredictorError) -> list[Any]:
    """Return the response on a path of each API, without the log line that goes with it."""
    logging.disable(logging.ERROR)
    try:
        return [error_response(path, error) for path in _PATHS]
    finally:
        logging.disable(logging.NOTSET)


def exit_code_rows() -> Iterator[Sequence[str]]:
    """Yield the row of each exit code."""
    by_code: dict[int, list[str]] = {}
    for kind in error_classes():
        by_code.setdefault(kind.exit_code, []).append(f"`{kind.__name__}`")
    for code, cause in sorted(_EXIT_CAUSES.items()):
        yield str(code), cause, ", ".join(by_code.pop(code, [])) if code != 1 else "all others"
    unknown = set(by_code) - set(_EXIT_CAUSES)
    if unknown:
        raise ValueError(f"exit codes without a cause: {sorted(unknown)}")


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
