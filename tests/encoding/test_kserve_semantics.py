"""Encoder tasks in the shapes of KServe's Hugging Face server, with its own clients' payloads."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import kserve
import numpy as np
import pytest

from predictor.protocol.response_style import OUR_STYLE, ResponseStyle
from predictor.tasks.request import DEFAULT_PARAMETERS
from predictor.tasks.task import RawInstance
from tests import serving
from tests.encoding.conftest import Make, ServeEncoder
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


@pytest.mark.parametrize("parameter", ["return_probabilities", "return_raw_logits"])
def test_kserves_own_clients_read_the_numbers_of_all_classes_in_v2(
    serve_kserve: ServeEncoder, parameter: str
) -> None:
    predictions, _ = in_both(serve_kserve, "sequence_classification", **{parameter: True})
    served = serve_kserve("sequence_classification")
    text = FIELDS["sequence_classification"]["text"]
    response = v2(served, [tensor("input-0", text)], parameters={parameter: True}).json()
    result = kserve.InferResponse.from_rest(response).outputs[0]
    assert (result.name, result.datatype, result.shape) == ("output-0", "BYTES", [1])
    by_index = {str(key): number for key, number in ast.literal_eval(result.data[0]).items()}
    assert by_index == pytest.approx(predictions[0], rel=1e-6)


def test_a_mask_is_its_best_token_and_a_text_its_vector(serve_kserve: ServeEncoder) -> None:
    predictions, tensors = in_both(serve_kserve, "fill_mask")
    assert isinstance(predictions[0], str)
    assert tensors == {"output-0": predictions}
    vectors, tensors = in_both(serve_kserve, "text_embedding")
    assert tensors["output-0"] == pytest.approx([*vectors[0], *vectors[1]], rel=1e-6)


def test_the_labels_of_all_tokens_are_indices(serve_kserve: ServeEncoder) -> None:
    predictions, tensors = in_both(serve_kserve, "token_classification")
    ((labels,), _) = predictions
    assert set(labels) <= {0, 1, 2}
    assert tensors == {"output-0": [*labels, *labels]}
    served = serve_kserve("token_classification")
    short = tensor("input-0", FIELDS["token_classification"]["text"], "I")
    (output,) = v2(served, [short]).json()["outputs"]
    count, one, longest = output["shape"]
    assert (count, one, output["datatype"]) == (2, 1, "INT64")
    assert longest == len(labels)
    assert output["data"][: len(labels)] == labels
    assert output["data"][-1] == -100


def test_other_tasks_keep_their_shapes(serve_kserve: ServeEncoder) -> None:
    served = serve_kserve("question_answering")
    (answer,) = v1(served, [FIELDS["question_answering"]]).json()["predictions"]
    assert answer.keys() == {"answer", "score", "start", "end"}


@pytest.mark.parametrize(
    ("task", "text", "datatype"),
    [
        ("sequence_classification", "Hello, my dog is cute.", "INT64"),
        (
            "token_classification",
            "HuggingFace is a company based in Paris and New York",
            "INT64",
        ),
        ("text_embedding", "This is an example sentence.", "FP32"),
    ],
)
@pytest.mark.parametrize("shape", [[], [1], [-1]])
def test_kserves_own_requests_are_answered_in_v2(
    serve_kserve: ServeEncoder, task: str, text: str, datatype: str, shape: list[int]
) -> None:
    served = serve_kserve(task)
    given = {"name": "input-0", "datatype": "BYTES", "shape": shape, "data": [text]}
    (output,) = v2(served, [given]).json()["outputs"]
    assert (output["name"], output["datatype"]) == ("output-0", datatype)
    (prediction,) = v1(served, [text]).json()["predictions"]
    flat = [prediction] if isinstance(prediction, int) else np.ravel(prediction).tolist()
    assert output["data"] == pytest.approx(flat, rel=1e-6)


def test_kserves_own_masks_are_filled_in_v1(serve_kserve: ServeEncoder) -> None:
    served = serve_kserve("fill_mask")
    texts = ["The capital of France is <mask>.", "The capital of <mask> is paris."]
    predictions = v1(served, texts).json()["predictions"]
    assert [type(each) for each in predictions] == [str, str]


def test_kserves_own_ranking_is_answered(serve_kserve: ServeEncoder) -> None:
    served = serve_kserve("rerank")
    body = {
        "model": "echo",
        "query": "What is the capital of France?",
        "documents": ["The capital of Brazil is Brasilia.", "The capital of France is Paris."],
    }
    results = httpx.post(f"{served.url}/openai/v1/rerank", json=body).json()["results"]
    assert sorted(each["index"] for each in results) == [0, 1]


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


def test_kserves_flag_leaves_special_tokens_out(make: Make) -> None:
    folder = make("token_classification", "bert")
    options = {"task": "token_classification"}
    counts = []
    for disabled in (False, True):
        up = serving.bring_up(folder, disable_special_tokens=disabled, **options)
        request = up.task.spec.request({}, [RawInstance({"text": "I like it"})])
        (answer,) = asyncio.run(up.task.prepare(request).complete())
        counts.append(len(answer.token_labels))
    assert counts[1] == counts[0] - 2
