"""Every metric that the predictor has, in one place: names, units, meaning.

They are in prometheus_client's default registry, which the SDK's ``/metrics`` shows. Names follow
Prometheus' conventions (base units, ``_total`` for counters); every metric has the label
``model_name``. The README's table is held against this module by a test.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_MODEL = "model_name"

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Seconds. An offloaded model takes seconds for a token, so a reply takes minutes."""

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter(
    "predictor_requests",
    "Requests that ended, by protocol and outcome: ok, bad_request, rejected, not_ready, deadline, "
    "cancelled, failed.",
    (_MODEL, "protocol", "outcome"),
)
REQUEST_SECONDS = Histogram(
    "predictor_request_seconds",
    "Time from a request's arrival to the end of its answer.",
    (_MODEL, "protocol"),
    buckets=_LONG,
)
RUNNING = Gauge("predictor_sequences_running", "Sequences in the running batch.", (_MODEL,))
WAITING = Gauge("predictor_sequences_waiting", "Sequences that wait to run.", (_MODEL,))
QUEUE_SECONDS = Histogram(
    "predictor_queue_seconds",
    "Time from a sequence's arrival to its first pass.",
    (_MODEL,),
    buckets=_LONG,
)
FIRST_TOKEN_SECONDS = Histogram(
    "predictor_time_to_first_token_seconds",
    "Time from a sequence's arrival to its first token.",
    (_MODEL,),
    buckets=_LONG,
)
INTER_TOKEN_SECONDS = Histogram(
    "predictor_inter_token_seconds",
    "Time between two tokens of one sequence.",
    (_MODEL,),
    buckets=_SHORT,
)
PROMPT_TOKENS = Counter("predictor_prompt_tokens", "Prompt tokens of sequences begun.", (_MODEL,))
GENERATED_TOKENS = Counter("predictor_generated_tokens", "Tokens generated.", (_MODEL,))
BATCH_ROWS = Histogram(
    "predictor_batch_sequences", "Sequences in one pass of the model.", (_MODEL,), buckets=_ROWS
)
STEP_SECONDS = Histogram(
    "predictor_step_seconds", "Time of one pass of the model.", (_MODEL,), buckets=_SHORT
)
KV_USED = Gauge("predictor_kv_tokens_used", "Tokens in the KV cache.", (_MODEL,))
KV_LIMIT = Gauge("predictor_kv_tokens_limit", "Tokens that the KV cache holds.", (_MODEL,))
PREEMPTIONS = Counter(
    "predictor_preemptions",
    "Sequences put back to be computed again, because the KV cache was full.",
    (_MODEL,),
)
PLACEMENT_BYTES = Gauge(
    "predictor_placement_bytes",
    "Bytes planned, by tier (GPU index, cpu, disk) and kind (weights, kv, staging, activations).",
    (_MODEL, "tier", "kind"),
)


class EngineMetrics:
    """The engine's metrics of one model."""

    def __init__(self, model_name: str) -> None:
        self.running = RUNNING.labels(model_name)
        self.waiting = WAITING.labels(model_name)
        self.queue_seconds = QUEUE_SECONDS.labels(model_name)
        self.first_token_seconds = FIRST_TOKEN_SECONDS.labels(model_name)
        self.inter_token_seconds = INTER_TOKEN_SECONDS.labels(model_name)
        self.prompt_tokens = PROMPT_TOKENS.labels(model_name)
        self.generated_tokens = GENERATED_TOKENS.labels(model_name)
        self.batch_rows = BATCH_ROWS.labels(model_name)
        self.step_seconds = STEP_SECONDS.labels(model_name)
        self.kv_used = KV_USED.labels(model_name)
        self.kv_limit = KV_LIMIT.labels(model_name)
        self.preemptions = PREEMPTIONS.labels(model_name)
