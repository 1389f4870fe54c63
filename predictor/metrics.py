"""All metrics of the predictor: names, units and meaning.

The metrics are in prometheus_client's default registry, which the SDK's ``/metrics`` shows. Names
follow Prometheus' conventions (base units, ``_total`` for counters), and every metric has the label
``model_name``. A test compares the documentation's table with this module. The modules that do the
work decide when something is counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from predictor.pace import Pace
from predictor.placement.plan import Placement

_MODEL = "model_name"

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Seconds. An offloaded model takes seconds for a token, so a reply takes minutes."""

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter(
    "predictor_requests",
    "Requests that ended, but for bulk work, by protocol and outcome: ok, bad_request, rejected, "
    "not_ready, deadline, cancelled, failed.",
    (_MODEL, "protocol", "outcome"),
)
REQUEST_SECONDS = Histogram(
    "predictor_request_seconds",
    "Time from a request's arrival to the end of its answer, but for bulk work.",
    (_MODEL, "protocol"),
    buckets=_LONG,
)
RUNNING = Gauge("predictor_sequences_running", "Sequences in the running batch.", (_MODEL,))
WAITING = Gauge("predictor_sequences_waiting", "Sequences that wait, but for bulk work.", (_MODEL,))
BULK_WAITING = Gauge(
    "predictor_bulk_sequences_waiting", "Sequences of bulk work that wait to run.", (_MODEL,)
)
QUEUE_SECONDS = Histogram(
    "predictor_queue_seconds",
    "Time from a sequence's arrival to its first pass, but for bulk work.",
    (_MODEL,),
    buckets=_LONG,
)
FIRST_TOKEN_SECONDS = Histogram(
    "predictor_time_to_first_token_seconds",
    "Time from a sequence's arrival to its first token, but for bulk work.",
    (_MODEL,),
    buckets=_LONG,
)
INTER_TOKEN_SECONDS = Histogram(
    "predictor_inter_token_seconds",
    "Time between two tokens of one sequence, but for bulk work.",
    (_MODEL,),
    buckets=_SHORT,
)
PROMPT_TOKENS = Counter("predictor_prompt_tokens", "Prompt tokens of sequences begun.", (_MODEL,))
CACHED_PROMPT_TOKENS = Counter(
    "predictor_prompt_tokens_cached",
    "Prompt tokens of sequences begun that the prefix cache had, so that none computed them.",
    (_MODEL,),
)
GENERATED_TOKENS = Counter("predictor_generated_tokens", "Tokens generated.", (_MODEL,))
DRAFT_TOKENS = Counter(
    "predictor_draft_tokens",
    "Draft tokens verified, by source: lookup, grammar, model.",
    (_MODEL, "source"),
)
ACCEPTED_DRAFTS = Counter(
    "predictor_draft_tokens_accepted", "Drafts accepted, by source.", (_MODEL, "source")
)
BATCH_ROWS = Histogram(
    "predictor_batch_sequences", "Sequences in one pass of the model.", (_MODEL,), buckets=_ROWS
)
STEP_SECONDS = Histogram(
    "predictor_step_seconds", "Time of one pass of the model.", (_MODEL,), buckets=_SHORT
)
READY = Gauge(
    "predictor_ready",
    "1 while a request would be answered, else 0: while it loads, is stalled or drains.",
    (_MODEL,),
)
STALLED = Gauge(
    "predictor_engine_stalled",
    "1 while a forward pass or a read of a block takes far too long, else 0.",
    (_MODEL,),
)
KV_USED = Gauge("predictor_kv_tokens_used", "Tokens in the KV cache.", (_MODEL,))
KV_LIMIT = Gauge("predictor_kv_tokens_limit", "Tokens that the KV cache holds.", (_MODEL,))
PREEMPTIONS = Counter(
    "predictor_preemptions",
    "Sequences, but for bulk work, put back to be computed again, because the KV cache was full.",
    (_MODEL,),
)
PLACEMENT_BYTES = Gauge(
    "predictor_placement_bytes",
    "Bytes planned, by tier (GPU index, cpu, disk) and kind (weights, kv, staging, "
    "activations, experts).",
    (_MODEL, "tier", "kind"),
)
WEIGHT_BYTES = Counter(
    "predictor_weights_read_bytes",
    "Bytes of streamed blocks read, by source: store, checkpoint.",
    (_MODEL, "source"),
)
WEIGHT_SECONDS = Counter(
    "predictor_weights_read_seconds",
    "Time spent reading streamed blocks; the bytes divided by it are the bandwidth.",
    (_MODEL, "source"),
)
WEIGHT_COPIED = Counter(
    "predictor_weights_copied_bytes",
    "Bytes of streamed blocks copied from main memory to a GPU, those from disk among them.",
    (_MODEL,),
)
WEIGHT_STALLS = Counter(
    "predictor_weights_stall_seconds",
    "Time that passes waited for blocks; the rest of predictor_step_seconds they computed.",
    (_MODEL,),
)
EXPERT_HITS = Counter(
    "predictor_expert_hits",
    "Experts that a layer of a forward pass used and that were in memory, by tier: GPU index, cpu.",
    (_MODEL, "tier"),
)
EXPERT_MISSES = Counter(
    "predictor_expert_misses",
    "Experts that a layer of a forward pass used and that were read from disk.",
    (_MODEL,),
)
EXPERT_SLOTS = Gauge(
    "predictor_expert_slots", "Experts that stay in memory between forward passes.", (_MODEL,)
)
EXPERT_HOTTEST = Gauge(
    "predictor_expert_hottest_ratio",
    "Share of a layer's tokens that the most used tenth of its experts got since the start.",
    (_MODEL, "layer"),
)
STORE_HITS = Counter(
    "predictor_offload_store_hits", "Starts that found the offload store they needed.", (_MODEL,)
)
STORE_BUILDS = Counter(
    "predictor_offload_store_builds", "Offload stores written by this process.", (_MODEL,)
)


Labelled = Callable[..., Any]
"""Returns a metric's child, given the metric and its labels' values."""


def labelled(metric: MetricWrapperBase, *labels: str) -> Any:
    """Return a metric's child in this process."""
    return metric.labels(*labels)


class WeightMetrics:
    """The metrics of one model's streaming.

    Attributes:
        store_hits: Starts that found their store.
        store_builds: Stores written.
        bytes_read: Bytes read so far, from any source.
        read_seconds: Seconds that these reads took.
        bytes_copied: Bytes copied to an accelerator so far.
        stall_seconds: Seconds that forward passes waited for blocks.
        expert_hits: Experts that layers used and that were in memory.
        expert_misses: Experts that layers used and that were read.
        expert_slots: Experts that stay in memory.
    """

    def __init__(self, model_name: str, *, child: Labelled = labelled) -> None:
        """Label the metrics with the model's name.

        Args:
            model_name: The name that the model is served under.
            child: Returns the children of metrics.
        """
        self.store_hits = child(STORE_HITS, model_name)
        self.store_builds = child(STORE_BUILDS, model_name)
        self.bytes_read = self.bytes_copied = 0
        self.read_seconds = self.stall_seconds = 0.0
        self.expert_hits = self.expert_misses = 0
        self._model, self._child = model_name, child
        self._lock = threading.Lock()
        self._stalls = child(WEIGHT_STALLS, model_name)
        self._copied = child(WEIGHT_COPIED, model_name)
        self._hits = {"cpu": child(EXPERT_HITS, model_name, "cpu")}
        self._misses = child(EXPERT_MISSES, model_name)
        self.expert_slots = child(EXPERT_SLOTS, model_name)

    def count_read(self, source: str, count: int, seconds: float) -> None:
        """Count bytes that were read, and the seconds in which they were; any thread may."""
        with self._lock:
            self.bytes_read += count
            self.read_seconds += seconds
        self._child(WEIGHT_BYTES, self._model, source).inc(count)
        self._child(WEIGHT_SECONDS, self._model, source).inc(seconds)

    def count_experts(self, tier: str, hits: int, misses: int) -> None:
        """Count the experts that one layer of a forward pass used; called by one thread.

        Args:
            tier: A GPU's index, or ``"cpu"``.
            hits: Those that were there.
            misses: Those that were read from disk.
        """
        self.expert_hits += hits
        self.expert_misses += misses
        if tier not in self._hits:
            self._hits[tier] = self._child(EXPERT_HITS, self._model, tier)
        self._hits[tier].inc(hits)
        self._misses.inc(misses)

    def count_copied(self, count: int) -> None:
        """Count bytes that were copied to an accelerator; called by one thread."""
        self.bytes_copied += count
        self._copied.inc(count)

    def count_stall(self, seconds: float) -> None:
        """Count the seconds that a forward pass waited for a block."""
        self.stall_seconds += seconds
        self._stalls.inc(seconds)


class EngineMetrics:
    """The metrics of one model's engine."""

    def __init__(
        self,
        model_name: str,
        weights: WeightMetrics | None = None,
        *,
        child: Labelled = labelled,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Label the metrics with the model's name.

        Args:
            model_name: The name that the model is served under.
            weights: The metrics of streaming; None if nothing is streamed.
            child: Returns the children of metrics.
            clock: Returns the time in seconds.
        """
        self._pace = Pace(weights, clock=clock)
        self.running = child(RUNNING, model_name)
        self.waiting = child(WAITING, model_name)
        self.bulk_waiting = child(BULK_WAITING, model_name)
        self.queue_seconds = child(QUEUE_SECONDS, model_name)
        self.first_token_seconds = child(FIRST_TOKEN_SECONDS, model_name)
        self.inter_token_seconds = child(INTER_TOKEN_SECONDS, model_name)
        self.prompt_tokens = child(PROMPT_TOKENS, model_name)
        self.cached_prompt_tokens = child(CACHED_PROMPT_TOKENS, model_name)
        self.generated_tokens = child(GENERATED_TOKENS, model_name)
        self._drafts = {
            source: (
                child(DRAFT_TOKENS, model_name, source),
                child(ACCEPTED_DRAFTS, model_name, source),
            )
            for source in ("lookup", "grammar", "model")
        }
        self.batch_rows = child(BATCH_ROWS, model_name)
        self.step_seconds = child(STEP_SECONDS, model_name)
        self.kv_used = child(KV_USED, model_name)
        self.kv_limit = child(KV_LIMIT, model_name)
        self.preemptions = child(PREEMPTIONS, model_name)

    def count_drafts(self, source: str, drafted: int, accepted: int) -> None:
        """Count the draft of a sequence that was verified, by where it came from."""
        verified, right = self._drafts[source]
        verified.inc(drafted)
        right.inc(accepted)

    def count_step(self, *, rows: int, seconds: float, tokens: int) -> None:
        """Count a forward pass; called by the engine's thread.

        Args:
            rows: Sequences in the forward pass.
            seconds: The duration of the forward pass.
            tokens: The tokens that it generated.
        """
        self.batch_rows.observe(rows)
        self.step_seconds.observe(seconds)
        self._pace.count_step(seconds, tokens)


def show_placement(model_name: str, placement: Placement) -> None:
    """Show a placement on ``/metrics``."""
    for tier in placement.tiers:
        for kind in ("weights", "kv", "staging", "activations", "experts"):
            PLACEMENT_BYTES.labels(model_name, tier.name, kind).set(getattr(tier, kind))
