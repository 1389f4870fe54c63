"""Changes of metrics that are recorded in one process and made in another."""

from __future__ import annotations

import pickle

from prometheus_client import REGISTRY

from predictor import metrics
from predictor.metric_updates import MetricRecorder, apply_updates


def sample(name: str, model: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model_name": model, **labels})


def test_recorded_changes_have_the_same_effect_in_the_other_process() -> None:
    recorder = MetricRecorder()
    weights = metrics.WeightMetrics("relay", child=recorder.child)
    engine = metrics.EngineMetrics("relay", weights, child=recorder.child)
    engine.running.set(3)
    engine.running.set(2)
    engine.generated_tokens.inc()
    engine.generated_tokens.inc(4)
    engine.queue_seconds.observe(0.5)
    engine.queue_seconds.observe(1.5)
    weights.count_read("store", 100, 0.25)
    assert sample("predictor_sequences_running", "relay") is None
    apply_updates(pickle.loads(pickle.dumps(recorder.take())))
    assert sample("predictor_sequences_running", "relay") == 2
    assert sample("predictor_generated_tokens_total", "relay") == 5
    assert sample("predictor_queue_seconds_count", "relay") == 2
    assert sample("predictor_queue_seconds_sum", "relay") == 2
    assert sample("predictor_weights_read_bytes_total", "relay", source="store") == 100
    assert recorder.take() == []


def test_a_metric_is_shown_before_it_changes() -> None:
    recorder = MetricRecorder()
    metrics.EngineMetrics("shown", child=recorder.child)
    apply_updates(recorder.take())
    assert sample("predictor_preemptions_total", "shown") == 0
    assert sample("predictor_step_seconds_count", "shown") == 0


def test_many_changes_of_one_metric_are_one_update() -> None:
    recorder = MetricRecorder()
    child = recorder.child(metrics.RUNNING, "merged")
    recorder.take()
    for value in range(100):
        child.set(value)
    (update,) = recorder.take()
    assert (update.method, update.value) == ("set", 99)
