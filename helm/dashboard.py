"""The Grafana dashboard of the chart, written to `dashboards/` as JSON.

`ROWS` says what is on it. One dashboard shows all models: variables choose namespace, model, pod.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboards" / "accelerate-predictor.json"

OF = 'namespace=~"$namespace",model_name=~"$model_name",pod=~"$pod"'
"""The labels that every query selects by."""

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: Its title.
        unit: Grafana's name of the unit.
        queries: The legend of each query, and the query.
        note: What the numbers mean.
        stacked: Whether series are stacked.
    """

    title: str
    unit: str
    queries: dict[str, str]
    note: str = ""
    stacked: bool = False


def _rate(metric: str, by: str = "", labels: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}{OF}}}[$__rate_interval]))"


def _sum(metric: str, by: str = "", labels: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} ({metric}{{{labels}{OF}}})"


def _quantiles(histogram: str) -> dict[str, str]:
    buckets = _rate(f"{histogram}_bucket", "le")
    shares = {"median": "0.5", "95 %": "0.95", "99 %": "0.99"}
    return {name: f"histogram_quantile({share}, {buckets})" for name, share in shares.items()}


def _mean(histogram: str) -> str:
    return f"{_rate(f'{histogram}_sum')} / {_rate(f'{histogram}_count')}"


_STALLS, _PASSES = "predictor_weights_stall_seconds_total", "predictor_step_seconds_sum"
_READ, _READING = "predictor_weights_read_bytes_total", "predictor_weights_read_seconds_total"
_TOKENS, _PROMPTS = "predictor_generated_tokens_total", "predictor_prompt_tokens_total"
_CACHED = "predictor_prompt_tokens_cached_total"
_REQUESTS = "predictor_requests_total"
_HITS, _MISSES = _rate("predictor_expert_hits_total"), _rate("predictor_expert_misses_total")
_FAULTS = 'outcome=~"failed|rejected|not_ready|deadline",'

ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel("Requests by outcome", "reqps", {"{{outcome}}": _rate(_REQUESTS, "outcome")}),
        Panel("Requests by protocol", "reqps", {"{{protocol}}": _rate(_REQUESTS, "protocol")}),
        Panel(
            "Share that was not served",
            "percentunit",
            {"share": f"({_rate(_REQUESTS, labels=_FAULTS)} or vector(0)) / {_rate(_REQUESTS)}"},
            "Requests that failed, were refused, or took too long.",
        ),
        Panel("Pods that are ready", "short", {"ready": _sum("predictor_ready")}),
        Panel(
            "Engine stalled",
            "short",
            {"{{pod}}": f"max by (pod) (predictor_engine_stalled{{{OF}}})"},
            "1 while a forward pass or a read takes far too long.",
        ),
    ),
    "Latency": (
        Panel("Time to first token", "s", _quantiles("predictor_time_to_first_token_seconds")),
        Panel("Time between tokens", "s", _quantiles("predictor_inter_token_seconds")),
        Panel("Time of a request", "s", _quantiles("predictor_request_seconds")),
        Panel("Time in the queue", "s", _quantiles("predictor_queue_seconds")),
    ),
    "Engine": (
        Panel(
            "Sequences",
            "short",
            {
                "running": _sum("predictor_sequences_running"),
                "waiting": _sum("predictor_sequences_waiting"),
            },
        ),
        Panel(
            "Tokens per second",
            "short",
            {
                "generated": _rate(_TOKENS),
                "prompts": _rate(_PROMPTS),
                "prompts, from the prefix cache": _rate(_CACHED),
            },
        ),
        Panel("Sequences in a forward pass", "short", {"mean": _mean("predictor_batch_sequences")}),
        Panel("Time of a forward pass", "s", _quantiles("predictor_step_seconds")),
        Panel("Share of time in forward passes", "percentunit", {"{{pod}}": _rate(_PASSES, "pod")}),
    ),
    "KV cache": (
        Panel("Use", "percentunit", {"{{pod}}": _sum("predictor_kv_used_ratio", "pod")}),
        Panel(
            "Tokens",
            "short",
            {"used": _sum("predictor_kv_tokens_used"), "limit": _sum("predictor_kv_tokens_limit")},
        ),
        Panel("Preemptions per second", "short", {"all": _rate("predictor_preemptions_total")}),
        Panel(
            "Share of prompt tokens from the prefix cache",
            "percentunit",
            {"share": f"{_rate(_CACHED)} / {_rate(_PROMPTS)}"},
        ),
    ),
    "Streaming and stalls": (
        Panel(
            "Share of forward passes spent waiting for blocks",
            "percentunit",
            {"{{pod}}": f"{_rate(_STALLS, 'pod')} / {_rate(_PASSES, 'pod')}"},
            "Near 1, the device of the weights limits the speed: keep more resident, use fewer "
            "bytes for a weight, or let more sequences share a pass.",
        ),
        Panel("Bytes read per second", "Bps", {"{{source}}": _rate(_READ, "source")}),
        Panel(
            "Bandwidth while reading",
            "Bps",
            {"{{source}}": f"{_rate(_READ, 'source')} / {_rate(_READING, 'source')}"},
        ),
        Panel("Bytes read per token", "bytes", {"read": f"{_rate(_READ)} / {_rate(_TOKENS)}"}),
        Panel(
            "Copied to GPUs per second",
            "Bps",
            {"all": _rate("predictor_weights_copied_bytes_total")},
        ),
        Panel(
            "Starts by their offload store",
            "short",
            {
                "reused": _sum("predictor_offload_store_hits_total"),
                "written": _sum("predictor_offload_store_builds_total"),
            },
        ),
    ),
    "Placement": (
        Panel(
            "Bytes planned",
            "bytes",
            {"{{tier}}, {{kind}}": _sum("predictor_placement_bytes", "tier, kind")},
            stacked=True,
        ),
        Panel(
            "Share of weights on disk",
            "percentunit",
            {
                "{{pod}}": _sum("predictor_placement_bytes", "pod", 'tier="disk",kind="weights",')
                + " / "
                + _sum("predictor_placement_bytes", "pod", 'kind="weights",')
            },
        ),
    ),
    "Experts": (
        Panel(
            "Share of used experts that were in memory",
            "percentunit",
            {"hits": f"{_HITS} / ({_HITS} + {_MISSES})"},
        ),
        Panel("Experts read per second", "short", {"misses": _MISSES}),
        Panel(
            "Experts that stay in memory",
            "short",
            {"{{pod}}": _sum("predictor_expert_slots", "pod")},
        ),
        Panel(
            "Share of tokens of the hottest tenth of experts",
            "percentunit",
            {"{{layer}}": f"max by (layer) (predictor_expert_hottest_ratio{{{OF}}})"},
        ),
    ),
}
"""The panels of each row, by its title."""


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "accelerate-predictor",
        "title": "Accelerate predictor",
        "tags": ["kserve", "accelerate-predictor"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def text() -> str:
    """Return the contents of the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }
    above: list[str] = []
    for name in ("namespace", "model_name", "pod"):
        chosen = ",".join(f'{label}=~"${label}"' for label in above)
        query = f"label_values(predictor_ready{{{chosen}}}, {name})"
        yield {
            "name": name,
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }
        above.append(name)


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}
        top += 1
        for index, panel in enumerate(panels):
            number += 1
            line, column = divmod(index, _COLUMNS // _WIDTH)
            place = {"x": column * _WIDTH, "y": top + line * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield {"id": number, "gridPos": place, **_panel(panel)}
        top += -(-len(panels) * _WIDTH // _COLUMNS) * _HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    custom = {"fillOpacity": 10, "showPoints": "never"}
    if panel.stacked:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.note,
        "datasource": _SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": expr,
                "legendFormat": legend,
            }
            for index, (legend, expr) in enumerate(panel.queries.items())
        ],
    }
