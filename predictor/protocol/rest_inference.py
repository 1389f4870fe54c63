"""HTTP endpoints that answer prompts: V1 predict and V2 infer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from predictor.errors import RequestError
from predictor.protocol.document import quoted
from predictor.protocol.rest_codec import (
    LENGTH_HEADER,
    encode_infer_response,
    parse_infer_request,
)
from predictor.protocol.rest_status import asked
from predictor.protocol.served import Models, require_ready

_OURS = frozenset({"content-length", "content-type", LENGTH_HEADER.lower()})


@dataclass(frozen=True, slots=True)
class InferenceEndpoints:
    """The endpoints and the models that answer."""

    models: Models

    async def predict(self, request: Request) -> Response:
        """``POST /v1/models/{model}:predict``: the body is JSON, whatever its content type says."""
        model = asked(self.models, request)
        await require_ready(model)
        answer, headers = await model(await _body(request), headers=dict(request.headers))
        return JSONResponse(answer, headers=_passed_on(headers))

    async def infer(self, request: Request) -> Response:
        """``POST /v2/models/{model}/infer``: JSON, or JSON and binary data."""
        model = asked(self.models, request)
        await require_ready(model)
        payload = parse_infer_request(
            await _body(request),
            header_length=request.headers.get(LENGTH_HEADER),
            model_name=model.name,
            model_version=model.version,
        )
        answer, headers = await model(payload, headers=dict(request.headers))
        encoded = encode_infer_response(answer, payload)
        return Response(encoded.body, headers=_passed_on(headers) | encoded.headers)

    async def explain(self, request: Request) -> Response:
        """``POST /v1/models/{model}:explain``: there is no explainer."""
        asked(self.models, request)
        raise HTTPException(501, "This model does not explain; it predicts.")


async def _body(request: Request) -> bytes:
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise RequestError(f"Content-Encoding {quoted(coding)} is not supported.")
    return await request.body()


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OURS}
