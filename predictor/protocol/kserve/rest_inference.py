"""HTTP endpoints that answer prompts: V1 predict and V2 infer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from predictor.errors import RequestError
from predictor.protocol.http.deadline import asked_timeout, counted, while_connected
from predictor.protocol.http.json_body import parse_document
from predictor.protocol.http.sse import event_stream
from predictor.protocol.kserve import v1
from predictor.protocol.kserve.rest_codec import (
    LENGTH_HEADER,
    encode_infer_response,
    parse_infer_request,
)
from predictor.protocol.kserve.rest_status import asked
from predictor.protocol.served import Models, ServedModel, require_generating, require_ready
from predictor.sentences import quote

_OURS = frozenset({"content-length", "content-type", LENGTH_HEADER.lower()})


@dataclass(frozen=True, slots=True)
class InferenceEndpoints:
    """The endpoints and the models that answer."""

    models: Models

    async def predict(self, request: Request) -> Response:
        """``POST /v1/models/{model}:predict``: the body is JSON, whatever its content type says."""
        model = asked(self.models, request)
        if "text/event-stream" in request.headers.get("accept", ""):
            return await self._predict_stream(request, model)
        with counted(model.name, "v1"):
            await require_ready(model)
            body = await read_body(request)
            call = model(body, headers=dict(request.headers))
            answer, headers = await while_connected(request, call)
        return JSONResponse(answer, headers=_passed_on(headers))

    async def _predict_stream(self, request: Request, model: ServedModel) -> Response:
        """The same where the client accepts events: one for each piece of a reply."""
        with ExitStack() as count:
            count.enter_context(counted(model.name, "v1"))
            await require_generating(model)
            body = parse_document(await read_body(request))
            asked_for = v1.decode(body, model.style.unsaid)
            stream = await model.stream(asked_for, asked_timeout(request.headers))
            return event_stream(count.pop_all(), stream, v1.encode_piece)

    async def infer(self, request: Request) -> Response:
        """``POST /v2/models/{model}/infer``: JSON, or JSON and binary data."""
        model = asked(self.models, request)
        with counted(model.name, "v2"):
            await require_ready(model)
            payload = parse_infer_request(
                await read_body(request),
                header_length=request.headers.get(LENGTH_HEADER),
                model_name=model.name,
                model_version=model.version,
            )
            call = model(payload, headers=dict(request.headers))
            answer, headers = await while_connected(request, call)
        encoded = encode_infer_response(answer, payload)
        return Response(encoded.body, headers=_passed_on(headers) | encoded.headers)

    async def explain(self, request: Request) -> Response:
        """``POST /v1/models/{model}:explain``: there is no explainer."""
        asked(self.models, request)
        raise HTTPException(501, "This model does not explain; it predicts.")


async def read_body(request: Request) -> bytes:
    """Returns the whole body.

    Raises:
        RequestError: It is compressed.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise RequestError(f"Content-Encoding {quote(coding)} is not supported.")
    return await request.body()


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OURS}
