"""Summaries of long answers: metrics and the OpenAPI schema."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_EACH = ("protocol", "outcome")
"""Labels whose values are kept, since they are the same in every run."""


_OURS = ("predictor_", "request_")
"""Prefixes of the metrics of the server, which are not those of Python and the process."""


def families(text: str) -> dict[str, Any]:
    """Returns the families of the server in Prometheus' text format, without their values."""
    return {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": sorted({_labels(sample) for sample in family.samples}),
        }
        for family in text_string_to_metric_families(text)
        if family.name.startswith(_OURS) and not family.name.endswith("_created")
    }


def routes(schema: Any) -> dict[str, list[str]]:
    """Returns the methods of each path in an OpenAPI document."""
    return {path: sorted(methods) for path, methods in schema["paths"].items()}


def _labels(sample: Any) -> str:
    rows = [
        f"{name}={value}" if name in _EACH else name
        for name, value in sorted(sample.labels.items())
    ]
    return f"{sample.name}{{{', '.join(rows)}}}"
