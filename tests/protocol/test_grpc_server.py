"""Our gRPC border over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import kserve
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from predictor.admission import AdmissionController
from predictor.errors import ConfigurationError, GenerationFailed
from predictor.protocol.http.errors import NEUTRAL
from predictor.protocol.kserve.grpc_bounds import GrpcBounds
from predictor.protocol.kserve.grpc_server import make_server
from predictor.protocol.kserve.tensors import to_raw
from tests.protocol.stub import DEFAULT_ADMISSION, MAX_BODY_BYTES, EchoModel, Served

INFER = "/inference.GRPCInferenceService/ModelInfer"
BOUNDS = GrpcBounds(AdmissionController(DEFAULT_ADMISSION), 4096)


@pytest.fixture
def service(served: Served) -> Iterator[Any]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(served.grpc_address, options=options) as channel:
        yield services.GRPCInferenceServiceStub(channel)


def asking(*texts: bytes, **fields: Any) -> Any:
    about = {"name": "text", "datatype": "BYTES", "shape": [len(texts)]}
    tensor = {**about, "contents": {"bytes_contents": texts}}
    return pb.ModelInferRequest(**{"model_name": "echo", "inputs": [tensor], **fields})


def refusal(call: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return caught.value.code().name, caught.value.details()


def test_the_server_is_live_and_ready(service: Any) -> None:
    assert service.ServerLive(pb.ServerLiveRequest()).live
    assert service.ServerReady(pb.ServerReadyRequest()).ready
    assert service.ModelReady(pb.ModelReadyRequest(name="echo")).ready
    assert service.ModelReady(pb.ModelReadyRequest(name="echo", version="1")).ready


def test_metadata_are_those_of_rest(service: Any) -> None:
    assert service.ServerMetadata(pb.ServerMetadataRequest()).name == "accelerate-predictor"
    model = service.ModelMetadata(pb.ModelMetadataRequest(name="echo"))
    assert (model.name, list(model.versions), model.platform) == ("echo", ["1"], "stub")
    assert [tensor.name for tensor in model.inputs] == ["text"]
    assert [tensor.datatype for tensor in model.outputs] == ["BYTES", "BYTES", "INT32", "INT32"]


def test_an_unready_model_is_unready_everywhere(served: Served, service: Any) -> None:
    served.model.ready = False
    assert service.ServerLive(pb.ServerLiveRequest()).live
    assert not service.ServerReady(pb.ServerReadyRequest()).ready
    assert not service.ModelReady(pb.ModelReadyRequest(name="echo")).ready


def test_an_unready_model_answers_no_prompt_and_is_not_loaded(served: Served, service: Any) -> None:
    served.model.ready = False
    answer = refusal(service.ModelInfer, asking(b"a"))
    assert answer == ("UNAVAILABLE", "Model 'echo' is not ready.")
    assert not served.model.requests


def test_prompts_are_answered_in_order(service: Any) -> None:
    answer = service.ModelInfer(asking(b"a", "ü".encode(), id="forty-two"))
    assert (answer.id, answer.model_name, answer.model_version) == ("forty-two", "echo", "1")
    text, reason, prompt_tokens, completion_tokens = answer.outputs
    assert list(text.contents.bytes_contents) == [b"A", "Ü".encode()]
    assert list(reason.contents.bytes_contents) == [b"stop", b"stop"]
    assert list(prompt_tokens.contents.int_contents) == [1, 1]
    assert list(completion_tokens.shape) == [2]


def test_a_request_without_an_id_gets_one(service: Any) -> None:
    assert service.ModelInfer(asking(b"a")).id


def test_raw_inputs_get_raw_outputs(service: Any) -> None:
    about = {"name": "text", "datatype": "BYTES", "shape": [1]}
    answer = service.ModelInfer(asking(inputs=[about], raw_input_contents=[to_raw(["ü"], "BYTES")]))
    assert list(answer.raw_output_contents) == [
        to_raw(["Ü"], "BYTES"),
        to_raw(["stop"], "BYTES"),
        to_raw([1], "INT32"),
        to_raw([1], "INT32"),
    ]


def test_only_the_requested_outputs_come(service: Any) -> None:
    wanted = [{"name": "completion_tokens"}, {"name": "text"}]
    answer = service.ModelInfer(asking(b"a", outputs=wanted))
    assert [output.name for output in answer.outputs] == ["completion_tokens", "text"]


def test_parameters_reach_the_model(served: Served, service: Any) -> None:
    parameters = {
        "temperature": pb.InferParameter(string_param="0.7"),
        "top_k": pb.InferParameter(int64_param=3),
        "return_full_text": pb.InferParameter(bool_param=True),
    }
    service.ModelInfer(asking(b"a", parameters=parameters))
    meant = served.model.requests[-1].prompts[0].parameters
    assert (meant.temperature, meant.top_k, meant.return_full_text) == (0.7, 3, True)


_TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"inputs": []}, "inputs is empty; give a BYTES tensor with at least one prompt."),
        ({"inputs": [_TENSOR]}, "Input 'text' has 0 elements; its shape [1] says 1."),
        ({"inputs": [{**_TENSOR, "datatype": "TEXT"}]}, "Input 'text' has datatype 'TEXT'; known"),
        ({"inputs": [{**_TENSOR, "shape": [-2]}]}, "Input 'text' has a dimension below 0"),
        (
            {"inputs": [_TENSOR], "raw_input_contents": [b"", b""]},
            "There are 2 raw_input_contents for 1 inputs.",
        ),
        (
            {"inputs": [_TENSOR], "raw_input_contents": [b"\x09\0\0\0a"]},
            "Input 'text' has binary data that ends within element 0.",
        ),
        (
            {"raw_input_contents": [b"\x01\0\0\0a"]},
            "An input has contents although raw_input_contents are given.",
        ),
        (
            {"parameters": {"top_p": pb.InferParameter()}},
            "Parameter 'top_p' has no value; send fractions as strings.",
        ),
        ({"outputs": [{"name": "logits"}]}, "There is no output 'logits'; known are text,"),
        (
            {"parameters": {"heat": pb.InferParameter(int64_param=1)}},
            "Unknown parameter 'heat'; known are max_new_tokens",
        ),
    ],
)
def test_a_wrong_request_is_invalid_argument_in_one_sentence(
    service: Any, fields: Any, sentence: str
) -> None:
    code, details = refusal(service.ModelInfer, asking(b"a", **fields))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(sentence)


def test_invalid_utf8_is_invalid_argument(service: Any) -> None:
    code, details = refusal(service.ModelInfer, asking(b"\xff"))
    assert (code, details) == (
        "INVALID_ARGUMENT",
        "Input 'text' has element 0 that is not valid UTF-8.",
    )


def test_what_is_not_there_is_not_found(service: Any) -> None:
    nobody = ("NOT_FOUND", "There is no model 'nobody'.")
    assert refusal(service.ModelInfer, asking(b"a", model_name="nobody")) == nobody
    assert refusal(service.ModelReady, pb.ModelReadyRequest(name="nobody")) == nobody
    assert refusal(service.ModelMetadata, pb.ModelMetadataRequest(name="nobody")) == nobody
    answer = refusal(service.ModelInfer, asking(b"a", model_version="2"))
    assert answer == ("NOT_FOUND", "Model 'echo' has no version '2'; it has '1'.")


def test_an_unforeseen_error_tells_nothing_but_is_logged(
    served: Served, service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served.model.failure = ZeroDivisionError("something secret")
    with caplog.at_level(logging.ERROR, logger="predictor"):
        assert refusal(service.ModelInfer, asking(b"a")) == ("INTERNAL", NEUTRAL)
    assert "something secret" in caplog.text
    served.model.failure = GenerationFailed("The model failed.")
    assert refusal(service.ModelInfer, asking(b"a")) == ("INTERNAL", "The model failed.")


def test_models_are_not_loaded_or_unloaded_by_anyone(service: Any) -> None:
    for call, request in (
        (service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="echo")),
        (service.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="echo")),
    ):
        code, details = refusal(call, request)
        assert code == "UNIMPLEMENTED"
        assert details == "Loading and unloading of models is not offered over gRPC."


def test_a_message_over_the_limit_is_resource_exhausted(service: Any) -> None:
    code, _ = refusal(service.ModelInfer, asking(b"a" * (MAX_BODY_BYTES + 1)))
    assert code == "RESOURCE_EXHAUSTED"


def test_a_long_sentence_still_reaches_the_client(service: Any) -> None:
    name = "\N{GRINNING FACE}" * 20_000
    parameters = {name: pb.InferParameter(int64_param=1)}
    code, _ = refusal(service.ModelInfer, asking(b"a", parameters=parameters))
    assert code == "INVALID_ARGUMENT"


def test_a_stopping_server_finishes_what_is_in_flight() -> None:
    async def stop_during_a_request() -> Any:
        model = Slow()
        models = kserve.ModelRepository()
        models.update(model)
        bound = make_server(models, host="127.0.0.1", port=0, bounds=BOUNDS)
        stopping = asyncio.Event()
        serving = asyncio.create_task(bound.serve(stopping, grace=30))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{bound.port}") as channel:
            call = services.GRPCInferenceServiceStub(channel).ModelInfer(asking(b"a"))
            await model.started.wait()
            stopping.set()
            await asyncio.sleep(0.1)
            assert not serving.done()
            model.may_finish.set()
            answer = await call
        await serving
        return answer

    assert asyncio.run(stop_during_a_request()).outputs[0].contents.bytes_contents == [b"A"]


class Slow(EchoModel):
    """Answers only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()
        self.may_finish = asyncio.Event()

    async def answer(self, request: Any, timeout: float | None) -> tuple[Any, ...]:
        self.started.set()
        await self.may_finish.wait()
        return await super().answer(request, timeout)


def test_a_port_in_use_is_a_configuration_error(served: Served) -> None:
    async def bind() -> None:
        make_server(
            kserve.ModelRepository(),
            host="127.0.0.1",
            port=served.grpc_port,
            bounds=BOUNDS,
        )

    with pytest.raises(ConfigurationError, match=r"cannot listen on 127.0.0.1"):
        asyncio.run(bind())


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\x2a\x00" * 100_000, "The message has more than 4096 fields."),
        (b"\x32\x00" * 100_000, "The message has more than 4096 fields."),
        (b"\x2a\x00" * 2000, "A request has at most 1024 inputs; here are 2000."),
        (b"\x32\x00" * 2000, "A request has at most 1024 outputs; here are 2000."),
        (
            b"\x2a" + b"\x8d\x9c\x01" + b"\x12\x05BYTES" + b"\x2a\x82\x9c\x01" + b"\x42\x00" * 9985,
            "A request has at most 2048 prompts",
        ),
    ],
)
def test_a_small_message_of_many_parts_is_refused_before_objects_are_made_of_them(
    served: Served, raw: bytes, sentence: str
) -> None:
    with grpc.insecure_channel(served.grpc_address) as channel:
        code, details = refusal(channel.unary_unary(INFER), b"\n\x04echo" + raw)
    assert (code, details[: len(sentence)]) == ("INVALID_ARGUMENT", sentence)
