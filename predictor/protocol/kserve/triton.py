"""Triton's endpoints that its clients and load tools ask for: a model's config and statistics.

The sources are Triton's model configuration and statistics extensions. Times are sums since the
start, in nanoseconds; the time of an answer is that of all requests, failed ones among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.metrics import MetricWrapperBase
from starlette.requests import Request

from predictor import metrics
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.http.requests import resolve_model
from predictor.protocol.served import Models, ServedModel

_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64"}


@dataclass(frozen=True, slots=True)
class TritonEndpoints:
    """The endpoints and the models that they describe."""

    models: Models

    async def config(self, request: Request) -> JSONAnswer:
        """``GET /v2/models/{model}/config``: the inputs and outputs of a model."""
        model = resolve_model(self.models, request)
        spec, platform = model.spec, model.metadata()["platform"]
        return JSONAnswer(
            {
                "name": model.name,
                "platform": platform,
                "backend": platform,
                "version_policy": {"latest": {"num_versions": 1}},
                "max_batch_size": 0,  # the first dimension of shapes is stated
                "input": [
                    {"name": field.name, "data_type": "TYPE_STRING", "dims": [-1]}
                    | ({} if field.required else {"optional": True})
                    for field in spec.fields
                ],
                "output": [
                    {
                        "name": output.name,
                        "data_type": _TYPES[output.datatype],
                        "dims": list(output.shape),
                    }
                    for output in spec.outputs
                ],
                "model_transaction_policy": {"decoupled": False},
            }
        )

    async def stats(self, request: Request) -> JSONAnswer:
        """``GET /v2/models/{model}/stats``: the numbers and times of a model's requests."""
        return JSONAnswer({"model_stats": [_stats(resolve_model(self.models, request))]})

    async def all_stats(self, _request: Request) -> JSONAnswer:
        """``GET /v2/models/stats``: those of all models."""
        models = {model.name: model for model in self.models.get_models().values()}
        return JSONAnswer({"model_stats": [_stats(model) for model in models.values()]})


def _stats(model: ServedModel) -> dict[str, object]:
    name = model.name
    ok = _total(metrics.REQUESTS, "_total", name, outcome="ok")
    every = _total(metrics.REQUESTS, "_total", name)
    steps = _total(metrics.STEP_SECONDS, "_count", name)
    none = _duration(0, 0)
    return {
        "name": name,
        "version": model.version,
        "inference_count": round(ok),
        "execution_count": round(steps),
        "inference_stats": {
            "success": _duration(ok, _total(metrics.REQUEST_SECONDS, "_sum", name)),
            "fail": _duration(every - ok, 0),
            "queue": _times(metrics.QUEUE_SECONDS, name),
            "compute_input": none,
            "compute_infer": _times(metrics.STEP_SECONDS, name),
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    }


def _times(metric: MetricWrapperBase, model: str) -> Mapping[str, int]:
    return _duration(_total(metric, "_count", model), _total(metric, "_sum", model))


def _duration(count: float, seconds: float) -> Mapping[str, int]:
    return {"count": round(count), "ns": round(seconds * 1e9)}


def _total(metric: MetricWrapperBase, suffix: str, model: str, **labels: str) -> float:
    """Return the sum of the samples of a metric that have these labels."""
    wanted = {"model_name": model, **labels}.items()
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix) and wanted <= sample.labels.items()
    )
