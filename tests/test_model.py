"""The served model as a ``kserve.Model``: what the SDK, or somebody's own code, can do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from predictor.errors import NotReady, RequestError
from predictor.model import PredictorModel
from predictor.settings import read_settings
from tests.conftest import Checkpoints

from kserve import InferInput, InferRequest  # isort: skip

FEW = {"max_new_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def model(checkpoints: Checkpoints) -> Iterator[PredictorModel]:
    flags = {"model_dir": str(checkpoints("bloom")), "max_model_len": 64, "device_map": "cpu"}
    model = PredictorModel(read_settings({**flags, "model_name": "m"}, environ={}))
    model.load()
    yield model
    model.release()


def call(model: PredictorModel, payload: Any, **headers: str) -> Any:
    response, _ = asyncio.run(model(payload, headers))
    return response


def test_a_v1_body_is_answered_as_an_object_or_as_bytes(model: PredictorModel) -> None:
    first = call(model, {"instances": ["The weather"], "parameters": FEW})
    (prediction,) = first["predictions"]
    assert prediction["completion_tokens"] == 3
    body = b'{"instances": ["The weather"], "parameters": {"max_new_tokens": 3, "temperature": 0}}'
    assert call(model, body) == first


def test_a_v2_request_gets_a_response(model: PredictorModel) -> None:
    tensor = InferInput("text", [1], "BYTES", ["The weather"])
    request = InferRequest("m", [tensor], request_id="7", parameters=FEW)
    response = call(model, request)
    assert (response.id, response.model_name) == ("7", "m")
    (expected,) = call(model, {"instances": ["The weather"], "parameters": FEW})["predictions"]
    assert {output.name: output.data for output in response.outputs} == {
        name: [value] for name, value in expected.items()
    }


def test_a_wrong_header_or_body_is_refused(model: PredictorModel) -> None:
    with pytest.raises(RequestError, match="x-request-timeout"):
        call(model, {"instances": ["a"]}, **{"x-request-timeout": "soon"})
    with pytest.raises(
        RequestError, match=r"^timeout is 1e\+06 seconds, .* limit 600 seconds .*mic"
    ):
        call(model, {"instances": ["a"], "parameters": {"timeout": 1_000_000}})
    with pytest.raises(RequestError, match="no 'instances'"):
        call(model, {})
    assert model.running == 0


def test_a_model_that_is_not_loaded_is_not_ready() -> None:
    idle = PredictorModel(read_settings({"model_dir": "/nowhere", "model_name": "m"}, environ={}))
    with pytest.raises(NotReady, match=r"^Model 'm' is not ready\.$"):
        call(idle, {"instances": ["a"]})
    with pytest.raises(NotReady):
        idle.check_open()
