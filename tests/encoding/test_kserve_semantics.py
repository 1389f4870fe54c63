"""Encoder tasks in the shapes of KServe's Hugging Face server, with its own clients' payloads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import kserve
import pytest

from predictor.protocol.response_style import OUR_STYLE, ResponseStyle
from predictor.tasks.request import DEFAULT_PARAMETERS
from tests.encoding.conftest import ServeEncoder
from tests.encoding.test_protocols import FIELDS, numbers, tensor, v1, v2
from tests.protocol.stub import Served

KSERVE = ResponseStyle(DEFAULT_PARAMETERS, "kserve")


@pytest.fixture
def serve_kserve(serve_encoder: ServeEncoder, running: Served) -> Iterator[ServeEncoder]:
    running.model.style = KSERVE
    yield serve_encoder
    running.model.style = OUR_STYLE


def in_both(serve: ServeEncoder, task: str, **parameters: Any) -> tuple[Any, dict[str, Any]]:
    served, fields = serve(task), FIELDS[task]
    predictions = v1(served, [fields, fields], **parameters).json()["predictions"]
    text = next(iter(fields.values()))
    tensors = numbers(v2(served, [tensor("input-0", text, text)], parameters=parameters))
    return predictions, tensors


def test_a_class_is_its_index(serve_kserve: ServeEncoder) -> None:
    predictions, tensors = in_both(serve_kserve, "sequence_classification")
    assert predictions == [predictions[0]] * 2
    assert predictions[0] in (0, 1, 2)
    assert tensors == {"output-0": predictions}


def test_numbers_of_all_classes_are_by_index(serve_kserve: ServeEncoder) -> None:
    predictions, tensors = in_both(
        serve_kserve, "sequence_classification", return_probabilities=True
    )
    assert list(predictions[0]) == ["0", "1", "2"]
    assert sum(predictions[0].values()) == pytest.approx(1)
    assert list(tensors) == ["output-0", "probabilities"]


def test_a_mask_is_its_best_token_and_a_text_its_vector(serve_kserve: ServeEncoder) -> None:
    predictions, tensors = in_both(serve_kserve, "fill_mask")
    assert isinstance(predictions[0], str)
    assert tensors == {"output-0": predictions}
    vectors, tensors = in_both(serve_kserve, "text_embedding")
    assert tensors["output-0"] == pytest.approx([*vectors[0], *vectors[1]], rel=1e-6)


def test_other_tasks_keep_their_shapes(serve_kserve: ServeEncoder) -> None:
    served = serve_kserve("token_classification")
    (entities,) = v1(served, [FIELDS["token_classification"]]).json()["predictions"]
    assert {"label", "start", "end"} <= entities[0].keys()


def test_kserves_client_finds_the_one_output(serve_kserve: ServeEncoder) -> None:
    served = serve_kserve("sequence_classification")
    given = kserve.InferInput("input-0", [1], "BYTES", data=["Hello"])

    async def ask() -> Any:
        config = kserve.RESTConfig(protocol="v2", retries=0)
        async with kserve.InferenceRESTClient(config) as client:
            return await client.infer(served.url, kserve.InferRequest("echo", [given]), "echo")

    (output,) = asyncio.run(ask()).outputs
    assert (output.name, output.datatype, output.shape) == ("output-0", "INT64", [1])
    assert output.data[0] in (0, 1, 2)
    described = httpx.get(f"{served.url}/v2/models/echo").json()["outputs"]
    assert described[0] == {"name": "output-0", "datatype": "INT64", "shape": [-1]}


def test_the_outputs_of_the_metadata_can_be_requested(serve_kserve: ServeEncoder) -> None:
    served = serve_kserve("sequence_classification")
    outputs = [{"name": "logits"}, {"name": "output-0"}]
    assert list(numbers(v2(served, [tensor("x", "Hello")], outputs=outputs))) == [
        "logits",
        "output-0",
    ]
