from __future__ import annotations

import logging

import grpc
import pytest
from fastapi.exceptions import RequestValidationError
from kserve import errors as sdk
from starlette.exceptions import HTTPException

from predictor import errors
from predictor.protocol.http.error_forms import api_of
from predictor.protocol.http.errors import NEUTRAL, grpc_error, http_error


@pytest.mark.parametrize(
    ("exception", "status", "code", "sentence"),
    [
        (errors.RequestError("No."), 400, "INVALID_ARGUMENT", "No."),
        (errors.BodyTooLarge("Big."), 413, "RESOURCE_EXHAUSTED", "Big."),
        (errors.UnknownModel("Who?"), 404, "NOT_FOUND", "Who?"),
        (errors.NotReady("Wait."), 503, "UNAVAILABLE", "Wait."),
        (errors.GenerationFailed("Failed."), 500, "INTERNAL", "Failed."),
        (sdk.InvalidInput("Bad."), 400, "INVALID_ARGUMENT", "Bad."),
        (sdk.ModelNotFound("m"), 404, "NOT_FOUND", "Model with name m does not exist."),
        (sdk.ModelNotReady("m"), 503, "UNAVAILABLE", "Model with name m is not ready."),
        (sdk.ServerNotReady(), 503, "UNAVAILABLE", "Server is not ready."),
        (sdk.InferenceError("secret"), 500, "INTERNAL", NEUTRAL),
        (NotImplementedError("aten::secret"), 500, "INTERNAL", NEUTRAL),
        (KeyError("secret"), 500, "INTERNAL", NEUTRAL),
    ],
)
def test_an_exception_means_the_same_on_both_borders(
    exception: Exception, status: int, code: str, sentence: str
) -> None:
    assert http_error(exception) == (status, sentence)
    assert grpc_error(exception) == (grpc.StatusCode[code], sentence)


def test_the_frameworks_refusals_become_sentences() -> None:
    assert http_error(HTTPException(404)) == (404, "There is nothing at this path.")
    assert http_error(HTTPException(405)) == (405, "This path does not take this method.")
    assert http_error(HTTPException(501, "Not here.")) == (501, "Not here.")
    wrong = RequestValidationError([{"loc": ("body", 0), "msg": "library text"}])
    assert http_error(wrong) == (400, "body.0 is missing or is not what this path takes.")


def test_a_sentence_is_short_enough_for_grpc_trailers() -> None:
    _, sentence = grpc_error(errors.RequestError("\N{GRINNING FACE}" * 10_000))
    assert len(sentence) == 500


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/openai", "openai"),
        ("/openai/anything", "openai"),
        ("/openaix", "other"),
        ("/v1", "openai"),
        ("/v1/completions", "openai"),
        ("/v1/models", "v1"),
        ("/v1/models/echo/v1", "v1"),
        ("/v1/models/echo:predict", "v1"),
        ("/v1/modelsx", "openai"),
        ("/api/v1", "openai"),
        ("/a/b/v1/completions", "openai"),
        ("/api/v1x", "other"),
        ("//v1", "other"),
        ("/v2/v1", "v2"),
        ("/v2/models/echo/infer", "v2"),
        ("/v2/models/echo/generate", "generate"),
        ("/tokenize", "openai"),
        ("/detokenize", "openai"),
        ("/tokenize/", "other"),
        ("/models/echo", "torchserve"),
        ("/embed", "tei"),
        ("/a" + "/v1" * 250_000 + "\n", "openai"),  # a pattern that backs up takes hours
        ("/v2/models/" + "a\n" * 500_000, "v2"),
    ],
    ids=lambda path: path[:30].strip(),
)
def test_a_path_is_of_one_api(path: str, api: str) -> None:
    assert api_of(path) == api


def test_only_the_servers_own_failures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="predictor"):
        http_error(errors.RequestError("No."))
        http_error(errors.NotReady("Wait."))
        assert not caplog.records
        http_error(KeyError("cause"))
    assert "cause" in caplog.text
