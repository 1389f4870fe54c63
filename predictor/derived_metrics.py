"""Metrics that are made of others when they are collected: the KV cache's ratio, and vLLM's names.

The endpoint picker of the Gateway API Inference Extension reads the use of the KV cache as one
ratio (its proposal 003). Dashboards and autoscalers that were made for vLLM read its names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from predictor import metrics

KV_RATIO = "predictor_kv_used_ratio"
"""The gauge of the share of the KV cache that is in use, from 0 to 1."""

VLLM_NAMES: Mapping[str, MetricWrapperBase] = {
    "vllm:num_requests_running": metrics.RUNNING,
    "vllm:num_requests_waiting": metrics.WAITING,
    "vllm:num_preemptions": metrics.PREEMPTIONS,
    "vllm:prompt_tokens": metrics.PROMPT_TOKENS,
    "vllm:generation_tokens": metrics.GENERATED_TOKENS,
    "vllm:spec_decode_num_draft_tokens": metrics.DRAFT_TOKENS,
    "vllm:spec_decode_num_accepted_tokens": metrics.ACCEPTED_DRAFTS,
    "vllm:request_queue_time_seconds": metrics.QUEUE_SECONDS,
    "vllm:time_to_first_token_seconds": metrics.FIRST_TOKEN_SECONDS,
    "vllm:inter_token_latency_seconds": metrics.INTER_TOKEN_SECONDS,
    "vllm:e2e_request_latency_seconds": metrics.REQUEST_SECONDS,
}
"""vLLM's names of metrics, without the ending of counters, and ours of the same meaning."""

VLLM_KV_RATIO = "vllm:kv_cache_usage_perc"
"""vLLM's name of the ratio."""


class DerivedMetrics(Collector):
    """Collects the derived metrics."""

    def __init__(self, *, vllm: bool) -> None:
        """Create it.

        Args:
            vllm: Whether vLLM's names are there too.
        """
        self._vllm = vllm

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, of what the others are now."""
        yield _kv_ratio(KV_RATIO)
        if self._vllm:
            yield _kv_ratio(VLLM_KV_RATIO)
            for name, metric in VLLM_NAMES.items():
                yield _renamed(metric, name)


def _kv_ratio(name: str) -> Metric:
    used, limit = _by_model(metrics.KV_USED), _by_model(metrics.KV_LIMIT)
    ratio = GaugeMetricFamily(name, "Share of the KV cache that is in use.", labels=["model_name"])
    for model, tokens in used.items():
        ratio.add_metric([model], tokens / limit[model] if limit.get(model) else 0.0)
    return ratio


def _by_model(metric: MetricWrapperBase) -> dict[str, float]:
    (family,) = metric.collect()
    return {sample.labels["model_name"]: sample.value for sample in family.samples}


def _renamed(metric: MetricWrapperBase, name: str) -> Metric:
    """Return a metric under another name; vLLM has no sources of drafts, which are added up."""
    (family,) = metric.collect()
    renamed = Metric(name, family.documentation, family.type)
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            labels = tuple(pair for pair in sample.labels.items() if pair[0] != "source")
            key = (name + sample.name.removeprefix(family.name), labels)
            values[key] = values.get(key, 0.0) + sample.value
    for (ending, labels), value in values.items():
        renamed.add_sample(ending, dict(labels), value)
    return renamed
