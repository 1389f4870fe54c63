"""HTTP endpoints of health, metadata and the model repository."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

import predictor
from predictor.errors import UnknownModel
from predictor.mixture.heat import LayerHeat
from predictor.protocol.http.json_body import JSONAnswer, optional
from predictor.protocol.http.requests import read_body, read_document, resolve_model
from predictor.protocol.kserve.v2 import signature
from predictor.protocol.served import (
    SERVER_NAME,
    Models,
    ServedModel,
    all_ready,
    model_list,
    model_row,
    readiness,
)

EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")


@dataclass(frozen=True, slots=True)
class StatusEndpoints:
    """The endpoints and the models that they describe.

    Attributes:
        models: The models that are served.
        created: Unix time that OpenAI's objects of models have.
    """

    models: Models
    created: int = field(default_factory=lambda: int(time.time()))

    async def alive(self, _request: Request) -> JSONAnswer:
        """``GET /``: the process answers."""
        return JSONAnswer({"status": "alive"})

    async def health(self, _request: Request) -> Response:
        """``GET /health``: 200 if every model can answer, else 503, as vLLM and TEI have it."""
        return Response(status_code=200 if await all_ready(self.models) else 503)

    async def version(self, _request: Request) -> JSONAnswer:
        """``GET /version``: the version of this server, as vLLM has it."""
        return JSONAnswer({"version": predictor.__version__})

    async def live(self, _request: Request) -> JSONAnswer:
        """``GET /v2/health/live``: the process answers."""
        return JSONAnswer({"live": True})

    async def ready(self, _request: Request) -> JSONAnswer:
        """``GET /v2/health/ready``: 200 if every model can answer, else 503.

        The progress of loading is with it, which goes on for a while after the model is ready.
        """
        is_ready, progress = await readiness(self.models)
        about = {"ready": is_ready} | ({"progress": progress} if progress else {})
        return JSONAnswer(about, 200 if is_ready else 503)

    async def server(self, _request: Request) -> JSONAnswer:
        """``GET /v2``: metadata of the server."""
        about = {"name": SERVER_NAME, "version": predictor.__version__}
        return JSONAnswer({**about, "extensions": list(EXTENSIONS)})

    async def names(self, _request: Request) -> JSONAnswer:
        """``GET /v2/models``: names of the models."""
        return JSONAnswer({"models": list(self.models.get_models())})

    async def v1_names(self, _request: Request) -> JSONAnswer:
        """``GET /v1/models``: names of the models, and OpenAI's list of them."""
        names = {"models": list(self.models.get_models())}
        return JSONAnswer(names | model_list(self.models, self.created))

    async def model_ready(self, request: Request) -> JSONAnswer:
        """``GET`` of a model's readiness in V2: 200 if it can answer, else 503."""
        return await self._readiness(request, {})

    async def v1_model_ready(self, request: Request) -> JSONAnswer:
        """``GET`` of a model's readiness in V1, which is OpenAI's object of it as well."""
        return await self._readiness(request, model_row(request.path_params["model"], self.created))

    async def _readiness(self, request: Request, more: Mapping[str, object]) -> JSONAnswer:
        model = resolve_model(self.models, request)
        is_ready = await model.healthy()
        about: dict[str, object] = {"name": request.path_params["model"], "ready": is_ready}
        about |= dict(more) if is_ready else {}
        progress = model.progress()
        about |= {"progress": progress} if progress else {}
        return JSONAnswer(about, 200 if is_ready else 503)

    async def model(self, request: Request) -> JSONAnswer:
        """``GET /v2/models/{model}``: metadata of a model."""
        model = resolve_model(self.models, request)
        metadata = model.metadata()
        properties = metadata.get("properties", {})
        return JSONAnswer(
            {
                "name": request.path_params["model"],
                "versions": [model.version],
                "platform": metadata["platform"],
                **signature(model.spec),
                "properties": {name: _string(value) for name, value in properties.items()},
            }
        )

    async def experts(self, request: Request) -> JSONAnswer:
        """``GET /v2/models/{model}/experts``: how often each expert of each layer is used."""
        model = resolve_model(self.models, request)
        layers = [_layer(layer) for layer in model.expert_heat()]
        return JSONAnswer({"name": request.path_params["model"], "layers": layers})

    async def index(self, request: Request) -> JSONAnswer:
        """``POST /v2/repository/index``: every model and its state; only ready ones on request."""
        document, _ = await read_document(request) if await read_body(request) else ({}, 0)
        only_ready = optional(document, "ready", bool, "ready")
        rows = [await _row(name, model) for name, model in self.models.get_models().items()]
        return JSONAnswer([row for row in rows if row["state"] == "READY" or not only_ready])

    async def no_loading(self, _request: Request) -> JSONAnswer:
        """``POST`` of the repository's load and unload, if they are turned off."""
        raise UnknownModel("Loading and unloading of models is turned off on this server.")


def _layer(heat: LayerHeat) -> dict[str, object]:
    return {
        "name": heat.name,
        "hottest_share": heat.hottest_share,
        "tokens": heat.tokens,
        "in_slots": heat.in_slots,
    }


async def _row(name: str, model: ServedModel) -> dict[str, str]:
    is_ready = await model.healthy()
    state, reason = ("READY", "") if is_ready else ("UNAVAILABLE", "The model is not ready.")
    return {"name": name, "version": model.version, "state": state, "reason": reason}


def _string(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
