"""HTTP endpoints for inference: V1 predict, whole or streamed, and V2 infer.

Each decodes the body for the model's task, calls `ServedModel.answer` or `stream`, and encodes what
comes back. A request that the model has no room for is refused before its body is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from predictor.protocol.http.codec import Codec, CodecThreads, codec_of
from predictor.protocol.http.deadline import counted, requested_timeout, while_connected
from predictor.protocol.http.json_body import JSONBody
from predictor.protocol.http.requests import read_body, resolve_model
from predictor.protocol.http.sse import event_stream
from predictor.protocol.kserve import v1, v1_answers, v2
from predictor.protocol.kserve.rest_codec import (
    LENGTH_HEADER,
    BinaryOutputs,
    Encoded,
    encode_infer_response,
    parse_infer_request,
)
from predictor.protocol.sdk import timed
from predictor.protocol.served import Models, ServedModel, require_generating, require_ready
from predictor.tasks.answers import Answer, json_size
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import TaskRequest
from predictor.tasks.task import TaskSpec


@dataclass(frozen=True, slots=True)
class InferenceEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        codec: Decodes the bodies of requests for generation, and encodes vectors.
    """

    models: Models
    codec: Codec = field(default_factory=CodecThreads)

    async def predict(self, request: Request) -> Response:
        """``POST /v1/models/{model}:predict``: the body is JSON, whatever its content type is."""
        model = resolve_model(self.models, request)
        if "text/event-stream" in request.headers.get("accept", ""):
            return await self._predict_stream(request, model)
        with counted(model.name, "v1"):
            await require_ready(model)
            body = await read_body(request)
            with timed("preprocess", model.name):
                model.check_open()
                typed = await self._decode(body, model)
            with timed("predict", model.name):
                call = model.answer(typed, requested_timeout(request.headers))
                answers = await while_connected(request, call)
            with timed("postprocess", model.name):
                codec = codec_of(answers, self.codec)
                encode = partial(v1.encode_body, predictions=model.style.predictions)
                return JSONBody(await codec.run(json_size(answers), encode, answers))

    async def _predict_stream(self, request: Request, model: ServedModel) -> Response:
        """Answer a client that accepts events: one for each piece of a reply."""
        with ExitStack() as count:
            count.enter_context(counted(model.name, "v1"))
            await require_generating(model)
            typed = await self._decode(await read_body(request), model)
            stream = await model.stream(typed, requested_timeout(request.headers))
            return event_stream(count.pop_all(), stream, v1_answers.events)

    async def _decode(self, body: bytes, model: ServedModel) -> TaskRequest:
        return await self._decoder(model).run(len(body), v1.decode_body, body, model.spec)

    def _decoder(self, model: ServedModel) -> Codec:
        # The specifications of other tasks hold a tokenizer, which is too much to send.
        return self.codec if isinstance(model.spec, GenerationSpec) else CodecThreads()

    async def infer(self, request: Request) -> Response:
        """``POST /v2/models/{model}/infer``: JSON, or JSON and binary data."""
        model = resolve_model(self.models, request)
        with counted(model.name, "v2"):
            await require_ready(model)
            body = await read_body(request)
            header_length = request.headers.get(LENGTH_HEADER)
            with timed("preprocess", model.name):
                model.check_open()
                decode = partial(_decode_infer, header_length=header_length)
                call, binary = await self._decoder(model).run(len(body), decode, body, model.spec)
            with timed("predict", model.name):
                work = model.answer(call.request, requested_timeout(request.headers))
                answers = await while_connected(request, work)
            with timed("postprocess", model.name):
                encode = partial(_encode_infer, model_name=model.name, model_version=model.version)
                codec, size = codec_of(answers, self.codec), json_size(answers)
                encoded = await codec.run(size, encode, answers, call.form, binary)
        return Response(encoded.body, headers=encoded.headers)

    async def explain(self, request: Request) -> Response:
        """``POST /v1/models/{model}:explain``: there is no explainer."""
        resolve_model(self.models, request)
        raise HTTPException(501, "This model does not explain; it predicts.")


def _decode_infer(
    body: bytes, spec: TaskSpec, *, header_length: str | None
) -> tuple[v2.Call, BinaryOutputs]:
    payload = parse_infer_request(body, header_length=header_length)
    return v2.decode(payload, spec), BinaryOutputs.of(payload)


def _encode_infer(
    answers: Sequence[Answer],
    form: v2.ResponseForm,
    binary: BinaryOutputs,
    *,
    model_name: str,
    model_version: str,
) -> Encoded:
    response = v2.encode(form, answers, model_name=model_name, model_version=model_version)
    return encode_infer_response(response, binary)
