"""The endpoint ``GET /info`` of Hugging Face's servers, by the task of the model.

Those are Text Generation Inference for models that generate, and Text Embeddings Inference for
others. Numbers that such a server has and this one does not are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

import predictor
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.served import SERVER_NAME, Models, ServedModel, require_ready
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.parameters import MAX_STOPS
from predictor.tasks.request import MAX_INSTANCES, most_instances

_KINDS = {
    "text_embedding": "embedding",
    "rerank": "reranker",
    "sequence_classification": "classifier",
}
"""Text Embeddings Inference's names of tasks."""


@dataclass(frozen=True, slots=True)
class InfoEndpoint:
    """The endpoint and the models that it describes.

    Attributes:
        models: The models that are served.
        tgi: Whether Text Generation Inference's routes are served.
    """

    models: Models
    tgi: bool

    async def info(self, _request: Request) -> JSONAnswer:
        """``GET /info``: the model and its limits, as TGI or TEI describes them."""
        model = next(iter(self.models.get_models().values()))
        await require_ready(model)
        if not isinstance(model.spec, GenerationSpec):
            return JSONAnswer(_shared(model) | _of_encoder(model))
        if not self.tgi:
            raise HTTPException(404)
        return JSONAnswer(_shared(model) | _of_generator(model))


def _shared(model: ServedModel) -> dict[str, object]:
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": _dtype(model),
        "max_concurrent_requests": model.limits().max_requests,
        "version": predictor.__version__,
        "sha": None,
        "docker_label": None,
    }


def _of_generator(model: ServedModel) -> dict[str, object]:
    most = model.text_tokens().max_model_len
    return {
        "model_pipeline_tag": model.spec.task.replace("_", "-"),
        "max_best_of": MAX_INSTANCES,
        "max_stop_sequences": MAX_STOPS,
        "max_input_tokens": most - 1,
        "max_total_tokens": most,
        "max_batch_size": model.limits().max_batch_size,
        "max_client_batch_size": 1,
        "router": SERVER_NAME,
    }


def _of_encoder(model: ServedModel) -> dict[str, object]:
    task, tokens = model.spec.task, model.text_tokens()
    return {
        "model_type": {_KINDS.get(task, task): {}},
        "max_input_length": tokens.max_model_len,
        "max_batch_requests": model.limits().max_batch_size,
        "max_client_batch_size": most_instances(task),
        "auto_truncate": tokens.truncates,
    }


def _dtype(model: ServedModel) -> str | None:
    placement = model.metadata()["properties"].get("placement", "{}")
    plan = json.loads(placement) if isinstance(placement, str) else placement
    dtype: str | None = plan.get("dtype")
    return dtype
