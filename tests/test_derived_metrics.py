"""Metrics that are made of others: the ratio of the KV cache, and vLLM's names."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from predictor import metrics
from predictor.derived_metrics import VLLM_NAMES, DerivedMetrics


def collected(*, vllm):
    registry = CollectorRegistry()
    registry.register(DerivedMetrics(vllm=vllm))
    return {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.labels["model_name"] == "derived"
    }


def test_the_ratio_of_the_kv_cache_is_from_0_to_1():
    metrics.KV_USED.labels("derived").set(5)
    metrics.KV_LIMIT.labels("derived").set(20)
    assert collected(vllm=False) == {("predictor_kv_used_ratio", None): 0.25}
    metrics.KV_LIMIT.labels("derived").set(0)  # a model that keeps no tokens
    assert collected(vllm=False) == {("predictor_kv_used_ratio", None): 0.0}


def test_vllms_names_have_our_values():
    metrics.RUNNING.labels("derived").set(3)
    metrics.PROMPT_TOKENS.labels("derived").inc(7)
    metrics.QUEUE_SECONDS.labels("derived").observe(0.5)
    values = collected(vllm=True)
    assert values["vllm:num_requests_running", None] == 3
    assert values["vllm:prompt_tokens_total", None] == 7
    assert values["vllm:request_queue_time_seconds_count", None] == 1
    assert values["vllm:request_queue_time_seconds_bucket", "+Inf"] == 1
    assert "vllm:kv_cache_usage_perc" in {name for name, _ in values}


def test_every_metric_of_vllms_names_has_a_model():
    assert all("model_name" in metric._labelnames for metric in VLLM_NAMES.values())
