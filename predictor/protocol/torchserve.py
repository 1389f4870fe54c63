"""TorchServe's API for clients that cannot be changed: inference, and what only tells of models.

The source is TorchServe 0.12 as it behaves with the Accelerate handler, whose answer is the bare
text. Where a body came as a JSON object with ``data`` it failed (503); here that is a prompt, and
may have ``parameters`` as an instance of V1 has. Errors have TorchServe's form (`error_forms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from predictor.errors import RequestError
from predictor.pod.memory import read_own_anonymous
from predictor.protocol import v1
from predictor.protocol.deadline import asked_timeout, counted, while_connected
from predictor.protocol.document import decode_text, parse_json
from predictor.protocol.rest_inference import read_body
from predictor.protocol.rest_status import asked
from predictor.protocol.served import Models, ServedModel, all_ready, require_ready
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt

_FIELDS = ("data", "body")
"""Names under which the handler looked for a prompt among a request's fields, in this order."""

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_MOST_FIELDS = 16
_MOST_PART_BYTES = 2**31
"""Of one field; the whole body is bounded before (`middleware`)."""


@dataclass(frozen=True, slots=True)
class TorchServeEndpoints:
    """The endpoints and the models that answer."""

    models: Models

    async def predict(self, request: Request) -> Response:
        """``POST`` and ``PUT /predictions/{model}[/{version}]``: a prompt in, its text out."""
        model = asked(self.models, request)
        with counted(model.name, "torchserve"):
            await require_ready(model)
            wish = GenerationRequest((await _prompt(request, model.style.unsaid),))
            call = model.answer(wish, asked_timeout(request.headers))
            (completion,) = await while_connected(request, call)
        return PlainTextResponse(completion.text)

    async def ping(self, _request: Request) -> Response:
        """``GET /ping``: whether every model can answer; TorchServe counted what it had started."""
        is_ready = await all_ready(self.models)
        return JSONResponse(
            {"status": "Healthy" if is_ready else "Unhealthy"}, 200 if is_ready else 503
        )

    async def list_models(self, _request: Request) -> Response:
        """``GET /models``: the models; there is never a next page."""
        names = self.models.get_models()
        return JSONResponse({"models": [{"modelName": name, "modelUrl": name} for name in names]})

    async def describe(self, request: Request) -> Response:
        """``GET /models/{model}[/{version}]``: the model as TorchServe describes one."""
        return JSONResponse([await _description(asked(self.models, request))])


async def _prompt(request: Request, unsaid: GenerationParameters) -> Prompt:
    """The prompt of a request: a field of the query or of a form, JSON, or the raw body."""
    said = request.query_params.get(_FIELDS[0])
    if said is not None:
        return Prompt(said, unsaid)
    body = await read_body(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in _FORMS:
        return Prompt(await _field(request), unsaid)
    if media_type != "application/json":
        return Prompt(decode_text(body), unsaid)
    value = parse_json(body)
    if isinstance(value, str):
        return Prompt(value, unsaid)
    return v1.decode_instance(value, "The body", shared={}, unsaid=unsaid)


async def _field(request: Request) -> str:
    form = request.form(
        max_files=_MOST_FIELDS, max_fields=_MOST_FIELDS, max_part_size=_MOST_PART_BYTES
    )
    async with form as fields:
        for name in _FIELDS:
            value = fields.get(name)
            if isinstance(value, UploadFile):
                return decode_text(await value.read())
            if value is not None:
                return value
    raise RequestError(
        f"The form has no field {' or '.join(map(repr, _FIELDS))}; a text can also be sent as it "
        "is, with the content type text/plain or none."
    )


async def _description(model: ServedModel) -> dict[str, Any]:
    """What `ModelDescription` has in TorchServe; one process serves, so there is one worker."""
    limits = model.limits()
    worker = {
        "id": "1",
        "status": "READY" if await model.healthy() else "UNLOADING",
        "memoryUsage": read_own_anonymous(),
    }
    return {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": model.name,
        "runtime": "python",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": limits.max_batch_size,
        "maxBatchDelay": 0,
        "responseTimeout": round(limits.request_timeout),
        "continuousBatching": True,
        "loadedAtStartup": True,
        "workers": [worker],
        "jobQueueStatus": {
            "remainingCapacity": max(limits.max_requests - limits.running, 0),
            "pendingRequests": limits.running,
        },
    }
