"""HTTP endpoints for inference: V1 predict, whole or streamed, and V2 infer.

Each decodes the body for the model's task, calls `ServedModel.answer` or `stream`, and encodes what
comes back. A request that the model has no room for is refused before its body is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from kserve import InferRequest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.deadline import counted, requested_timeout, while_connected
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_body, resolve_model
from predictor.protocol.http.sse import event_stream
from predictor.protocol.kserve import v1, v1_answers, v2
from predictor.protocol.kserve.rest_codec import (
    LENGTH_HEADER,
    Encoded,
    encode_infer_response,
    parse_infer_request,
)
from predictor.protocol.sdk import timed
from predictor.protocol.served import Models, ServedModel, require_generating, require_ready
from predictor.tasks.answers import Answer, json_size
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import TaskRequest


@dataclass(frozen=True, slots=True)
class InferenceEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        codec: Decodes the bodies of requests for generation.
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
                return await off_loop(
                    json_size(answers),
                    lambda: JSONAnswer(v1.encode(answers, text_only=model.style.text_only)),
                )

    async def _predict_stream(self, request: Request, model: ServedModel) -> Response:
        """Answer a client that accepts events: one for each piece of a reply."""
        with ExitStack() as count:
            count.enter_context(counted(model.name, "v1"))
            await require_generating(model)
            typed = await self._decode(await read_body(request), model)
            stream = await model.stream(typed, requested_timeout(request.headers))
            return event_stream(count.pop_all(), stream, v1_answers.events)

    async def _decode(self, body: bytes, model: ServedModel) -> TaskRequest:
        # The specifications of other tasks hold a tokenizer, which is too much to send.
        codec = self.codec if isinstance(model.spec, GenerationSpec) else CodecThreads()
        return await codec.run(len(body), v1.decode_body, body, model.spec)

    async def infer(self, request: Request) -> Response:
        """``POST /v2/models/{model}/infer``: JSON, or JSON and binary data."""
        model = resolve_model(self.models, request)
        with counted(model.name, "v2"):
            await require_ready(model)
            body = await read_body(request)
            header_length = request.headers.get(LENGTH_HEADER)
            with timed("preprocess", model.name):
                model.check_open()
                payload, call = await off_loop(
                    len(body), lambda: _decode_infer(body, header_length, model)
                )
            with timed("predict", model.name):
                work = model.answer(call.request, requested_timeout(request.headers))
                answers = await while_connected(request, work)
            with timed("postprocess", model.name):
                encoded = await off_loop(
                    json_size(answers), lambda: _encode_infer(payload, call, answers, model)
                )
        return Response(encoded.body, headers=encoded.headers)

    async def explain(self, request: Request) -> Response:
        """``POST /v1/models/{model}:explain``: there is no explainer."""
        resolve_model(self.models, request)
        raise HTTPException(501, "This model does not explain; it predicts.")


def _decode_infer(
    body: bytes, header_length: str | None, model: ServedModel
) -> tuple[InferRequest, v2.Call]:
    payload = parse_infer_request(
        body, header_length=header_length, model_name=model.name, model_version=model.version
    )
    return payload, v2.decode(payload, model.spec)


def _encode_infer(
    payload: InferRequest, call: v2.Call, answers: Sequence[Answer], model: ServedModel
) -> Encoded:
    response = v2.encode(call, answers, model_name=model.name, model_version=model.version)
    return encode_infer_response(response, payload)
