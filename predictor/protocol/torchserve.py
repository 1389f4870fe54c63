"""TorchServe's API for clients that cannot be changed: inference, and what only tells of models.

The source is TorchServe 0.12 as it behaves with the Accelerate handler, whose answer is the bare
text; models for other tasks answer with V1's prediction. Where a body came as a JSON object with
``data`` it failed (503); here that is a prompt, and may have ``parameters`` as an instance of V1
has. Errors have TorchServe's form (`error_forms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from predictor.errors import RequestError
from predictor.pod.memory import read_own_anonymous
from predictor.protocol.http.deadline import asked_timeout, counted, while_connected
from predictor.protocol.http.json_body import decode_text, parse_json
from predictor.protocol.kserve import encoder_codec, v1
from predictor.protocol.kserve.rest_inference import read_body
from predictor.protocol.kserve.rest_status import asked
from predictor.protocol.served import Models, ServedModel, all_ready, find, require_ready
from predictor.tasks.encoder_spec import EncoderRequest
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt

_FIELDS = ("data", "body")
"""Names under which the handler looked for a prompt among a request's fields, in this order."""

_EVERY_VERSION = "all"
_MOST_FIELDS = 16
_MOST_PART_BYTES = 2**31
"""Of one field; the whole body is bounded before (`middleware`)."""


@dataclass(frozen=True, slots=True)
class TorchServeEndpoints:
    """The endpoints and the models that answer."""

    models: Models

    async def predict(self, request: Request) -> Response:
        """``POST`` and ``PUT /predictions/{model}[/{version}]``: what V1 takes as an instance.

        A model that generates answers with the text alone, one that reads with V1's prediction.
        """
        model = asked(self.models, request)
        with counted(model.name, "torchserve"):
            await require_ready(model)
            given, head = await _given(request), model.head
            wish: GenerationRequest | EncoderRequest
            if head is None:
                wish = GenerationRequest((_prompt(given, model.style.unsaid),))
            else:
                wish = EncoderRequest((encoder_codec.decode_instance(given, "The body", head, {}),))
            call = model.answer(wish, asked_timeout(request.headers))
            (answer,) = await while_connected(request, call)
        if head is None:
            return PlainTextResponse(answer.text)
        return JSONResponse(head.prediction(answer))

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
        """``GET /models/{model}[/{version}|/all]``: the model as TorchServe describes one."""
        name, version = (request.path_params.get(key) for key in ("model", "version"))
        model = find(self.models, str(name), None if version == _EVERY_VERSION else version)
        return JSONResponse([await _description(model)])


async def _given(request: Request) -> object:
    """What a request brings: a field of the query or of a form, a JSON value, or the raw text."""
    said = request.query_params.get(_FIELDS[0])
    if said is not None:
        return said
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _part(request)
    body = await read_body(request)
    if media_type == "application/x-www-form-urlencoded":
        return _field(body)
    return parse_json(body) if media_type == "application/json" else decode_text(body)


def _prompt(given: object, unsaid: GenerationParameters) -> Prompt:
    if isinstance(given, str):
        return Prompt(given, unsaid)
    return v1.decode_instance(given, "The body", shared={}, unsaid=unsaid)


async def _part(request: Request) -> str:
    await read_body(request)
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
    raise _no_field()


def _field(body: bytes) -> str:
    """The text of a form, in which what is not ASCII may stand as it is (``curl --data``)."""
    try:
        pairs = parse_qsl(
            decode_text(body), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except UnicodeDecodeError:
        raise RequestError("The form is not valid UTF-8.") from None
    except ValueError:
        raise RequestError(f"The form has more than {_MOST_FIELDS} fields.") from None
    fields = dict(pairs)
    for name in _FIELDS:
        if name in fields:
            return fields[name]
    raise _no_field()


def _no_field() -> RequestError:
    return RequestError(
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
