"""The live figures of one model: counters and gauges out of the metrics, as JSON values.

Rates are left to the page, which has the figures of a moment before: the server keeps no history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

from predictor import metrics

_SUM = "_sum"
_COUNT = "_count"

_FIGURES: dict[str, tuple[MetricWrapperBase, str]] = {
    "requests": (metrics.REQUESTS, "_total"),
    "prompt_tokens": (metrics.PROMPT_TOKENS, "_total"),
    "generated_tokens": (metrics.GENERATED_TOKENS, "_total"),
    "first_tokens": (metrics.FIRST_TOKEN_SECONDS, _COUNT),
    "first_token_seconds": (metrics.FIRST_TOKEN_SECONDS, _SUM),
    "passes": (metrics.STEP_SECONDS, _COUNT),
    "pass_seconds": (metrics.STEP_SECONDS, _SUM),
    "read_bytes": (metrics.WEIGHT_BYTES, "_total"),
    "copied_bytes": (metrics.WEIGHT_COPIED, "_total"),
    "stall_seconds": (metrics.WEIGHT_STALLS, "_total"),
    "expert_hits": (metrics.EXPERT_HITS, "_total"),
    "expert_misses": (metrics.EXPERT_MISSES, "_total"),
    "running": (metrics.RUNNING, ""),
    "waiting": (metrics.WAITING, ""),
    "kv_used": (metrics.KV_USED, ""),
    "kv_limit": (metrics.KV_LIMIT, ""),
}
"""For each figure its metric, and the ending of the samples that are added up."""


def live_figures(model_name: str, *, clock: Callable[[], float]) -> dict[str, Any]:
    """Return the figures of a model, and the time in seconds when they were read.

    Args:
        model_name: The name that its metrics are labelled with.
        clock: Returns the time in seconds.
    """
    figures = {
        name: sum(sample.value for sample in _samples(metric, ending, model_name))
        for name, (metric, ending) in _FIGURES.items()
    }
    return {"seconds": clock(), **figures}


def _samples(metric: MetricWrapperBase, ending: str, model_name: str) -> Iterator[Sample]:
    for family in metric.collect():
        for sample in family.samples:
            if sample.name == family.name + ending and sample.labels["model_name"] == model_name:
                yield sample
