"""TorchServe's API for clients that cannot be changed: inference, and the description of models.

The source is TorchServe 0.12 as it behaves with the Accelerate handler, whose answer is the bare
text; models for other tasks answer with V1's prediction. The handler failed (503) on a JSON object
with ``data``; here that is a prompt, and may have ``parameters`` like an instance of V1. Errors
have TorchServe's form (`error_forms`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from predictor.errors import RequestError
from predictor.protocol.http.deadline import counted, requested_timeout, while_connected
from predictor.protocol.http.json_body import JSONAnswer, decode_text, parse_json
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_body, resolve_model
from predictor.protocol.kserve import v1
from predictor.protocol.kserve.v1_answers import prediction
from predictor.protocol.served import Models, ServedModel, all_ready, find, require_ready
from predictor.tasks.answers import Completion

_FIELDS = ("data", "body")
"""Fields of a request that the handler took for the prompt, in this order."""

_EVERY_VERSION = "all"
_MOST_FIELDS = 16
_MOST_PART_BYTES = 2**31
"""Bytes of one field; the middleware limits the whole body."""


@dataclass(frozen=True, slots=True)
class TorchServeEndpoints:
    """The endpoints and the models that answer."""

    models: Models

    async def predict(self, request: Request) -> Response:
        """``POST``, ``PUT`` and ``GET /predictions/{model}[/{version}]``: an instance of V1.

        A model that generates text answers with the text alone, any other with V1's prediction.
        """
        return await self._predicted(request, resolve_model(self.models, request))

    async def invoke(self, request: Request) -> Response:
        """``POST /invocations``: the same of the one model, as SageMaker asks."""
        return await self._predicted(request, next(iter(self.models.get_models().values())))

    async def _predicted(self, request: Request, model: ServedModel) -> Response:
        with counted(model.name, "torchserve"):
            await require_ready(model)
            given = await _instance(request)
            instance = v1.decode_instance(given, "The body", model.spec)
            typed = model.spec.request({}, [instance])
            call = model.answer(typed, requested_timeout(request.headers))
            (answer,) = await while_connected(request, call)
        if isinstance(answer, Completion):
            return PlainTextResponse(answer.text)
        return JSONAnswer(prediction(answer))

    async def ping(self, _request: Request) -> Response:
        """``GET /ping``: whether every model can answer."""
        is_ready = await all_ready(self.models)
        return JSONAnswer(
            {"status": "Healthy" if is_ready else "Unhealthy"}, 200 if is_ready else 503
        )

    async def list_models(self, _request: Request) -> Response:
        """``GET /models``: the models; there is never a next page."""
        names = self.models.get_models()
        return JSONAnswer({"models": [{"modelName": name, "modelUrl": name} for name in names]})

    async def describe(self, request: Request) -> Response:
        """``GET /models/{model}[/{version}|/all]``: the model as TorchServe describes one."""
        name, version = (request.path_params.get(key) for key in ("model", "version"))
        model = find(self.models, str(name), None if version == _EVERY_VERSION else version)
        return JSONAnswer([await _description(model)])


async def _instance(request: Request) -> object:
    """Return a field of the query or of a form, the JSON value or the raw text of a request."""
    field = request.query_params.get(_FIELDS[0])
    if field is not None:
        return field
    if request.method in ("GET", "HEAD"):
        raise RequestError("The query has no field 'data', which has the prompt.")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _part(request)
    body = await read_body(request)
    decode: Callable[[bytes], object] = _DECODERS.get(media_type, decode_text)
    return await off_loop(len(body), lambda: decode(body))


async def _part(request: Request) -> str:
    await read_body(request)
    # The parser is Python, and asynchronous though it waits for nothing.
    return await asyncio.to_thread(lambda: asyncio.run(_parse_part(request)))


async def _parse_part(request: Request) -> str:
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
    """Return the text of a form, which may have raw non-ASCII characters (``curl --data``)."""
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


_DECODERS: dict[str, Callable[[bytes], object]] = {
    "application/x-www-form-urlencoded": _field,
    "application/json": parse_json,
}


def _no_field() -> RequestError:
    return RequestError(
        f"The form has no field {' or '.join(map(repr, _FIELDS))}; a text can also be sent as it "
        "is, with the content type text/plain or none."
    )


async def _description(model: ServedModel) -> dict[str, Any]:
    """Return TorchServe's `ModelDescription`; one process serves, so there is one worker."""
    limits = model.limits()
    worker = {
        "id": "1",
        "status": "READY" if await model.healthy() else "UNLOADING",
        "memoryUsage": limits.memory,
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
