"""The live figures are the metrics of one model."""

from predictor import metrics
from predictor.protocol.ui.live import live_figures


def figures(name):
    return live_figures(name, clock=lambda: 5.0)


def test_figures_are_the_sums_of_a_models_samples_over_all_their_labels():
    metrics.GENERATED_TOKENS.labels("live").inc(7)
    metrics.GENERATED_TOKENS.labels("another").inc(100)
    metrics.WEIGHT_BYTES.labels("live", "store").inc(30)
    metrics.WEIGHT_BYTES.labels("live", "checkpoint").inc(12)
    metrics.FIRST_TOKEN_SECONDS.labels("live").observe(0.5)
    metrics.FIRST_TOKEN_SECONDS.labels("live").observe(1.5)
    metrics.KV_USED.labels("live").set(9)

    current = figures("live")

    assert (current["seconds"], current["generated_tokens"], current["read_bytes"]) == (5.0, 7, 42)
    assert (current["first_tokens"], current["first_token_seconds"]) == (2, 2.0)
    assert current["kv_used"] == 9


def test_a_model_without_a_sample_has_zeros():
    current = figures("never counted")

    assert set(current.values()) == {5.0, 0}
