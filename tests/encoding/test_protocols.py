"""Every encoder task, over V1, V2, gRPC, OpenAI's and TEI's forms, by real clients."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from typing import Any

import httpx
import kserve
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from openai.types import CreateEmbeddingResponse
from tokenizers.pre_tokenizers import ByteLevel

from predictor.tasks.encoder_task import EncoderTask
from predictor.tasks.text_tokens import TextTokens
from tests.encoding.conftest import ServeEncoder
from tests.protocol.stub import Served

FIELDS: dict[str, dict[str, str]] = {
    "sequence_classification": {"text": "I like it"},
    "token_classification": {"text": "I like it"},
    "question_answering": {"question": "who?", "context": "Ada did it"},
    "fill_mask": {"text": "I <mask> it"},
    "text_embedding": {"text": "I like it"},
    "rerank": {"query": "who?", "text": "Ada did it"},
}
TASKS = tuple(FIELDS)
COLUMNS = {
    "sequence_classification": {"label", "score"},
    "token_classification": {"row", "label", "score", "word", "start", "end"},
    "question_answering": {"answer", "score", "start", "end"},
    "fill_mask": {"row", "token", "token_id", "score"},
    "text_embedding": {"embedding"},
    "rerank": {"score"},
}


def v1(served: Served, instances: list[Any], **parameters: Any) -> httpx.Response:
    body = {"instances": instances} | ({"parameters": parameters} if parameters else {})
    return httpx.post(f"{served.url}/v1/models/echo:predict", json=body, timeout=60)


def v2(served: Served, tensors: list[dict[str, Any]], **also: Any) -> httpx.Response:
    body = {"inputs": tensors, **also}
    return httpx.post(f"{served.url}/v2/models/echo/infer", json=body, timeout=60)


def tensor(name: str, *texts: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}


def numbers(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


@pytest.mark.parametrize("task", TASKS)
def test_v1_and_v2_say_the_same(serve_encoder: ServeEncoder, task: str) -> None:
    served, fields = serve_encoder(task), FIELDS[task]
    first, second = v1(served, [fields, fields]).json()["predictions"]
    assert first == second
    ranked = numbers(v2(served, [tensor(name, text) for name, text in fields.items()]))
    assert set(ranked) == COLUMNS[task]
    flat = {
        "sequence_classification": lambda: {key: [first[key]] for key in ("label", "score")},
        "token_classification": lambda: {"label": [entity["label"] for entity in first]},
        "question_answering": lambda: {key: [value] for key, value in first.items()},
        "fill_mask": lambda: {"token": [filling["token"] for filling in first]},
        "text_embedding": lambda: {"embedding": first},
        "rerank": lambda: {"score": [first["score"]]},
    }[task]()
    for name, values in flat.items():
        if isinstance(values[0], float):
            assert ranked[name] == pytest.approx(values, rel=1e-6)
        else:
            assert ranked[name] == values


@pytest.mark.parametrize("task", TASKS)
def test_torchserves_route_answers_with_v1s_prediction(
    serve_encoder: ServeEncoder, task: str
) -> None:
    served, fields = serve_encoder(task), FIELDS[task]
    (expected,) = v1(served, [fields]).json()["predictions"]
    with httpx.Client(base_url=served.url) as client:
        assert client.post("/predictions/echo", json=fields).json() == expected
        lone = client.put("/predictions/echo", content=next(iter(fields.values())))
    if len(fields) == 1:
        assert lone.json() == expected
    else:
        assert (lone.status_code, lone.json()["type"]) == (400, "BadRequestException")
        assert "The body has no '" in lone.json()["message"]


@pytest.mark.parametrize("task", TASKS)
def test_tritons_clients_get_the_tensors_of_the_metadata(
    serve_encoder: ServeEncoder, task: str
) -> None:
    served, fields = serve_encoder(task), FIELDS[task]
    inputs = []
    for name, text in fields.items():
        given = triton.InferInput(name, [2], "BYTES")
        given.set_data_from_numpy(np.array([text, text], dtype=np.object_))
        inputs.append(given)
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        metadata = client.get_model_metadata("echo")
        answer = client.infer("echo", inputs)
    program = [sys.executable, "-m", "tests.encoding.triton_over_grpc", served.grpc_address]
    served_over_grpc = subprocess.run(
        [*program, json.dumps(fields)], check=True, capture_output=True, text=True, timeout=100
    )
    grpc = json.loads(served_over_grpc.stdout)
    assert [one["name"] for one in grpc["outputs"]] == [one["name"] for one in metadata["outputs"]]
    assert set(grpc["seen"]) == COLUMNS[task]
    for output in metadata["outputs"]:
        values = answer.as_numpy(output["name"])
        if output["name"] not in COLUMNS[task]:  # it was not asked for
            assert values is None
            continue
        assert len(values.shape) == len(output["shape"])
        seen = grpc["seen"][output["name"]]
        assert seen["dtype"] == str(values.dtype)
        if output["datatype"] == "FP32":
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            assert seen["data"] == pytest.approx(values.ravel().tolist(), rel=1e-6)


class Constant:
    """Stands in for the engine: has the same result for every text."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def new_request(self) -> int:
        return 0

    def submit_all(self, texts: Any, listeners: Any, *, request: int, is_bulk: bool) -> list[int]:
        for listener in listeners:
            listener(self._result)
        return [0] * len(texts)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_an_error_and_not_a_result(
    serve_encoder: ServeEncoder, value: float
) -> None:
    served, fields = serve_encoder("rerank"), FIELDS["rerank"]
    engine: Any = Constant(np.array([value], dtype=np.float32))
    served.model.task = EncoderTask(served.model.task.spec, engine)
    whole = v1(served, [fields])
    old = httpx.post(f"{served.url}/predictions/echo", json=fields, timeout=60)
    for response in (whole, old):
        assert response.status_code == 500
        assert "The model gave no numbers" in response.text


def test_probabilities_and_logits_are_tensors_of_the_labels(serve_encoder: ServeEncoder) -> None:
    served = serve_encoder("sequence_classification")
    wanted = [{"name": "logits"}, {"name": "probabilities"}]
    response = v2(served, [tensor("x", "a", "b", "c d")], outputs=wanted)
    logits, probabilities = response.json()["outputs"]
    assert logits["shape"] == probabilities["shape"] == [3, 3]
    values = np.array(logits["data"]).reshape(3, 3)
    softmax = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    assert softmax.flatten() == pytest.approx(probabilities["data"], abs=1e-6)


def test_kserves_client_gets_the_same_over_grpc(serve_encoder: ServeEncoder) -> None:
    served = serve_encoder("rerank")

    async def ask() -> Any:
        client = kserve.InferenceGRPCClient(served.grpc_address)
        inputs = []
        for name, texts in (("query", ["who?"]), ("text", ["Ada did", "nobody"])):
            given = kserve.InferInput(name, [len(texts)], "BYTES")
            given.set_data_from_numpy(np.array(texts, dtype=np.object_))
            inputs.append(given)
        request = kserve.InferRequest("echo", inputs)
        try:
            return await client.infer(request)
        finally:
            await client.close()

    answer = asyncio.run(ask())
    expected = numbers(v2(served, [tensor("query", "who?"), tensor("text", "Ada did", "nobody")]))
    assert answer.outputs[0].as_numpy().tolist() == pytest.approx(expected["score"], rel=1e-6)


def test_openais_client_gets_embeddings(serve_encoder: ServeEncoder) -> None:
    served = serve_encoder("text_embedding")
    client = openai.OpenAI(base_url=f"{served.url}/openai/v1", api_key="none", max_retries=0)
    texts = ["I like it", "no"]
    (expected, other) = v1(served, texts).json()["predictions"]
    ranked = client.embeddings.create(model="echo", input=texts)  # asks for base64
    assert ranked.data[0].embedding == pytest.approx(expected, abs=1e-6)
    assert ranked.data[1].embedding == pytest.approx(other, abs=1e-6)
    assert ranked.usage.prompt_tokens == len("I like it") + len("no") + 4
    plain = client.embeddings.create(model="echo", input="I like it", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(expected, abs=1e-6)
    tokens = [1, *(5 + ord_of(char) for char in "no"), 2]
    by_tokens = client.embeddings.create(model="echo", input=[tokens, tokens])
    assert by_tokens.data[1].embedding == pytest.approx(other, abs=1e-6)


def ord_of(char: str) -> int:
    """Returns the place of a letter in the tokenizer's alphabet."""
    return sorted(ByteLevel.alphabet()).index(char)


def test_dimensions_are_refused_where_the_model_was_not_made_for_them(
    serve_encoder: ServeEncoder,
) -> None:
    served = serve_encoder("text_embedding")
    body = {"model": "echo", "input": "x", "dimensions": 8}
    response = httpx.post(f"{served.url}/openai/v1/embeddings", json=body)
    assert response.status_code == 400
    assert "made for: 64" in response.json()["error"]["message"]


def test_too_many_tokens_have_openais_code(serve_encoder: ServeEncoder) -> None:
    served = serve_encoder("text_embedding")
    body = {"model": "echo", "input": [5] * 1000}
    response = httpx.post(f"{served.url}/openai/v1/embeddings", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_rerank_ranks_the_documents(serve_encoder: ServeEncoder) -> None:
    served = serve_encoder("rerank")
    documents = ["one", "two two", "three"]
    body = {"model": "echo", "query": "who?", "documents": documents, "return_documents": True}
    ranked = httpx.post(f"{served.url}/openai/v1/rerank", json=body).json()["results"]
    scores = [result["relevance_score"] for result in ranked]
    assert scores == sorted(scores, reverse=True)
    assert [result["document"]["text"] for result in ranked] == [
        documents[result["index"]] for result in ranked
    ]
    pairs = [{"query": "who?", "text": document} for document in documents]
    alone = [about["score"] for about in v1(served, pairs).json()["predictions"]]
    assert [alone[result["index"]] for result in ranked] == pytest.approx(scores, abs=1e-6)
    top = httpx.post(f"{served.url}/openai/v1/rerank", json={**body, "top_n": 1}).json()
    assert len(top["results"]) == 1


def test_teis_forms(serve_encoder: ServeEncoder) -> None:
    served = serve_encoder("text_embedding")
    (expected,) = v1(served, ["no"]).json()["predictions"]
    ranked = httpx.post(f"{served.url}/embed", json={"inputs": "no", "truncate": True}).json()
    assert ranked == [pytest.approx(expected, abs=1e-6)]
    served = serve_encoder("rerank")
    body = {"query": "who?", "texts": ["one", "two"], "raw_scores": True, "return_text": True}
    ranks = httpx.post(f"{served.url}/rerank", json=body).json()
    assert {rank["text"] for rank in ranks} == {"one", "two"}
    assert ranks[0]["score"] >= ranks[1]["score"]
    served = serve_encoder("sequence_classification")
    labels = httpx.post(f"{served.url}/predict", json={"inputs": "I like it"}).json()
    assert {label["label"] for label in labels} == {"bad", "fair", "good"}
    assert sum(label["score"] for label in labels) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "no 'instances'"),
        ({"instances": []}, "instances is empty"),
        ({"instances": "x"}, "instances must be a list"),
        ({"instances": [3]}, "must be a string or an object"),
        ({"instances": [None]}, "must be a string or an object"),
        ({"instances": [{}]}, "has no '"),
        ({"instances": [{"txet": "x"}]}, "Unknown key 'txet'"),
        ({"instances": ["x"], "parameters": []}, "parameters must be an object"),
        ({"instances": ["x"], "instanzes": []}, "Unknown key 'instanzes'"),
        ({"instances": ["x"] * 2049}, "A request has at most "),
    ],
)
def test_bad_v1_bodies_are_refused_in_a_sentence(
    serve_encoder: ServeEncoder, task: str, body: Any, sentence: str
) -> None:
    response = httpx.post(f"{serve_encoder(task).url}/v1/models/echo:predict", json=body)
    assert response.status_code == 400
    assert sentence in response.json()["error"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"max_new_tokens": 3}, "Unknown parameter 'max_new_tokens'"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "soon"}, "timeout must be a number"),
    ],
)
def test_bad_parameters_are_refused(
    serve_encoder: ServeEncoder, task: str, parameters: dict[str, Any], sentence: str
) -> None:
    served = serve_encoder(task)
    assert sentence in v1(served, [FIELDS[task]], **parameters).json()["error"]
    tensors = [tensor(name, text) for name, text in FIELDS[task].items()]
    response = v2(served, tensors, parameters=parameters)
    assert response.status_code == 400
    assert sentence in response.json()["error"]


@pytest.mark.parametrize("task", TASKS)
def test_bad_tensors_are_refused(serve_encoder: ServeEncoder, task: str) -> None:
    served, fields = serve_encoder(task), FIELDS[task]
    right = [tensor(name, text) for name, text in fields.items()]
    wrong = {
        "inputs is empty": [],
        "is there twice": [*right, right[0]],
        "must be BYTES": [{**right[0], "datatype": "INT32", "data": [1]}, *right[1:]],
        "There is no input": [*right, tensor("strange", "x"), tensor("other", "x")],
        "no element": [{**each, "shape": [0], "data": []} for each in right],
    }
    if len(right) > 1:
        wrong["inputs has no"] = right[1:]
        two, three = tensor(right[0]["name"], "a", "b"), tensor(right[1]["name"], "a", "b", "c")
        wrong["has 2 elements instead of 1 or 3"] = [two, three]
    for sentence, tensors in wrong.items():
        response = v2(served, tensors)
        assert response.status_code == 400, sentence
        assert sentence in response.json()["error"]
    response = v2(served, right, outputs=[{"name": "strange"}])
    assert "There is no output 'strange'" in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/openai/v1/completions", {"model": "echo", "prompt": "x"}),
        ("/openai/v1/chat/completions", {"model": "echo", "messages": []}),
        ("/v2/models/echo/generate", {"text_input": "x"}),
        ("/v2/models/echo/generate_stream", {"text_input": "x"}),
        ("/openai/v1/rerank", {"model": "echo", "query": "x", "documents": ["x"]}),
        ("/rerank", {"query": "x", "texts": ["x"]}),
        ("/predict", {"inputs": "x"}),
    ],
)
def test_what_another_task_answers_is_refused_by_name(
    serve_encoder: ServeEncoder, path: str, body: Any
) -> None:
    response = httpx.post(f"{serve_encoder('text_embedding').url}{path}", json=body)
    assert response.status_code in (400, 422)
    assert "its task is text_embedding" in response.text


@pytest.mark.parametrize(
    "body",
    [
        {"model": "echo"},
        {"model": "echo", "input": []},
        {"model": "echo", "input": 3},
        {"model": "echo", "input": [["x"]]},
        {"model": "echo", "input": [[]]},
        {"model": "echo", "input": [[10**9]]},
        {"model": "echo", "input": [True, False]},
        {"model": "echo", "input": "x" * 1000},
        {"model": "echo", "input": "x", "encoding_format": "int8"},
        {"model": "echo", "input": "x", "dimensions": "8"},
        {"model": "echo", "input": ["x"] * 2049},
        {"model": "echo", "input": "x", "truncate_prompt_tokens": 0},
        {"model": "echo", "input": "x", "add_special_tokens": False},
        {"input": "x"},
    ],
    ids=str,
)
def test_bad_embedding_bodies_are_refused(serve_encoder: ServeEncoder, body: Any) -> None:
    response = httpx.post(f"{serve_encoder('text_embedding').url}/openai/v1/embeddings", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"][-1] in ".?"


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({"truncate_prompt_tokens": -1}, 128),
        ({"truncate_prompt_tokens": 9}, 9),
        ({"truncate_prompt_tokens": 1000}, 128),
        ({"truncate": True}, 128),
        ({"truncate_prompt_tokens": 9, "input": [[5] * 1000]}, 9),
        ({"truncate": True, "inptu": 1, "user": "me", "dimensions": None}, 128),
    ],
    ids=str,
)
def test_embeddings_cut_texts_by_vllms_key_or_teis(
    serve_encoder: ServeEncoder, more: dict[str, Any], tokens: int
) -> None:
    url = f"{serve_encoder('text_embedding').url}/v1/embeddings"
    body = {"model": "echo", "input": "x" * 1000, **more}
    response = httpx.post(url, json=body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] == tokens


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_of_openais_type(serve_encoder: ServeEncoder, form: str) -> None:
    url = f"{serve_encoder('text_embedding').url}/v1/embeddings"
    body = {"model": "echo", "input": ["x", "y"], "encoding_format": form}
    answer = httpx.post(url, json=body).json()
    if form == "base64":  # OpenAI's client decodes it before it makes the type
        for each in answer["data"]:
            each["embedding"] = np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist()
    typed = CreateEmbeddingResponse.model_validate_json(json.dumps(answer), strict=True)
    assert [each.index for each in typed.data] == [0, 1]


def test_embeddings_take_two_thousand_texts(serve_encoder: ServeEncoder) -> None:
    url = f"{serve_encoder('text_embedding').url}/v1/embeddings"
    response = httpx.post(url, json={"model": "echo", "input": ["x"] * 2048}, timeout=60)
    assert len(response.json()["data"]) == 2048


def test_info_is_teis_for_an_encoder(serve_encoder: ServeEncoder) -> None:
    served = serve_encoder("text_embedding")
    served.model.tokens = TextTokens(None, 128, 256)
    info = httpx.get(f"{served.url}/info").json()
    assert info["model_type"] == {"embedding": {}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (128, 2048)
    assert info["auto_truncate"] is False
    served.model.tokens = TextTokens(None, 128, 256, truncates=True)
    assert httpx.get(f"{served.url}/info").json()["auto_truncate"] is True
