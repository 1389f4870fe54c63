"""Write the reference tables from the objects that define them: settings, metrics, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from docs.generator import command_line
from docs.generator.error_table import error_rows, exit_code_rows
from docs.generator.other_servers import flag_rows, variable_rows
from docs.generator.pages import ROOT
from predictor import metrics
from predictor.compatibility.flag import Flag
from predictor.compatibility.kserve_flags import KSERVE_FLAGS
from predictor.compatibility.tgi_flags import TGI_FLAGS
from predictor.compatibility.vllm_flags import VLLM_FLAGS
from predictor.derived_metrics import DerivedMetrics
from predictor.protocol.openai.keys import IGNORED, REFUSED, Refusal
from predictor.protocol.openai.request import CHAT_KEYS, COMPLETION_KEYS
from predictor.protocol.openai.responses import request as responses
from predictor.protocol.tgi.request import PARAMETERS as TGI_PARAMETERS
from predictor.protocol.tgi.request import REFUSED as TGI_REFUSED
from predictor.quantity import as_quantity
from predictor.settings import Settings, own_names
from predictor.settings_sources import ALIASES, PREFIX

_REGION = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)

_UNITS = {
    "tokens": (
        "max_model_len",
        "max_length",
        "prefill_chunk",
        "max_prefill_chunk",
        "max_batch_tokens",
        "max_tokens_in_flight",
        "prompt_lookup_num_tokens",
        "draft_model_num_tokens",
    ),
    "requests": ("max_concurrency", "max_requests"),
    "connections": ("max_connections",),
    "headers": ("max_header_count",),
    "sequences": ("max_batch_size", "max_sequences_in_flight"),
    "seconds": (
        "prefill_target",
        "grace_period",
        "max_batch_delay",
        "request_timeout",
        "client_timeout",
        "stall_timeout",
        "hang_timeout",
        "timeout_keep_alive",
    ),
    "bytes": (
        "max_memory",
        "memory_reserve",
        "max_body_size",
        "max_header_size",
        "max_bytes_in_flight",
        "max_grammar_size",
        "grammar_memory",
        "lora_memory",
        "batch_file_size",
        "batch_dir_size",
    ),
    "days": ("batch_days",),
    "bytes per second": ("min_body_rate",),
    "fraction": ("memory_headroom", "pinned_memory_fraction", "gpu_fraction"),
    "port": ("http_port", "grpc_port"),
}
UNITS = {name: unit for unit, names in _UNITS.items() for name in names}
"""The unit of each setting that has one."""


def with_tables(page: str) -> str:
    """Return the page with every generated region written anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- generated: {name} -->\n\n{TABLES[name]()}\n\n<!-- end -->"

    return _REGION.sub(replace, page)


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def settings_table() -> str:
    """Return the table of all settings."""
    head = ("Flag, environment variable", "Type", "Default", "Unit", "Meaning")
    return table(head, _settings_rows())


def _settings_rows() -> Iterator[Sequence[str]]:
    schema = Settings.model_json_schema()["properties"]
    for name in own_names():
        field = Settings.model_fields[name]
        meaning = re.sub(r"\s+", " ", field.description or "").strip()
        value = field.get_default(call_default_factory=True)
        default = "" if value is None else f"`{_default(name, value)}`"
        kind, unit = _type(name, schema[name]), UNITS.get(name, "")
        yield _names(name), kind, default, unit, meaning
    for alias, name in ALIASES.items():
        yield _names(alias), "", "", "", f"Same as `--{name}`."


def _names(name: str) -> str:
    return f"`--{name}`<br>`{PREFIX}{name.upper()}`"


def _default(name: str, default: object) -> object:
    return as_quantity(int(str(default))) if _is_quantity(name) else default


def _is_quantity(name: str) -> bool:
    return UNITS.get(name, "").startswith("bytes")


def _type(name: str, schema: dict[str, Any]) -> str:
    if name == "device_map":  # its validator accepts more than the type of the result says
        return "string or JSON object"
    options = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return " or ".join(_one_type(name, option) for option in options)


def _one_type(name: str, schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema.get("type", "string")
    if kind == "object":
        return "JSON object"
    if _is_quantity(name):
        return "quantity"
    if schema.get("format") == "path":
        return "path"
    return " ".join([kind, *_bounds(schema)])


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    if bounds:
        yield ", ".join(bounds)


def metrics_table() -> str:
    """Return the table of all metrics."""
    head = ("Metric", "Type", "Unit", "Labels besides `model_name`", "Meaning")
    return table(head, _metrics_rows())


def _metrics_rows() -> Iterator[Sequence[str]]:
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            labels = [label for label in metric._labelnames if label != "model_name"]
            yield _metric_row(next(iter(metric.describe())), labels)
    for family in DerivedMetrics(vllm=False).collect():
        yield _metric_row(family, [])


def _metric_row(family: Metric, labels: Sequence[str]) -> Sequence[str]:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    units = {"seconds": "seconds", "bytes": "bytes", "tokens": "tokens", "ratio": "fraction"}
    unit = next((unit for word, unit in units.items() if word in name), "count")
    shown = ", ".join(f"`{label}`" for label in labels)
    return f"`{name}`", family.type, unit, shown, family.documentation


def openai_keys_table() -> str:
    """Return the table of the keys of OpenAI's requests."""
    groups = {
        "Followed, completions": COMPLETION_KEYS,
        "Followed, chat completions": CHAT_KEYS,
        "Followed, responses": responses.KEYS,
        "Ignored": tuple(sorted(IGNORED)),
        "Ignored, responses": tuple(sorted(responses.IGNORED)),
    }
    rows = ((name, ", ".join(f"`{key}`" for key in keys)) for name, keys in groups.items())
    return table(("Group", "Keys"), rows)


def refused_keys_table(refused: Mapping[str, Refusal]) -> str:
    """Return the table of keys of requests that are refused, with the reasons."""
    rows = (
        (f"`{key}`", refusal.reason, ", ".join(f"`{json.dumps(one)}`" for one in refusal.harmless))
        for key, refusal in refused.items()
    )
    return table(("Key", "Reason", "Values that are accepted"), rows)


def tgi_parameters_table() -> str:
    """Return the table of the parameters of Text Generation Inference."""
    rows = [("Followed", ", ".join(f"`{key}`" for key in TGI_PARAMETERS), "")]
    for key, refusal in TGI_REFUSED.items():
        harmless = ", ".join(f"`{json.dumps(one)}`" for one in refusal.harmless)
        rows.append((f"Refused: {refusal.reason}", f"`{key}`", harmless))
    return table(("Group", "Parameters", "Values that are accepted"), iter(rows))


def flags_table(flags: Mapping[str, Flag]) -> str:
    """Return the table of the flags of another server."""
    return table(("Flag", "Accepted", "Otherwise refused: what to do instead"), flag_rows(flags))


def errors_table() -> str:
    """Return the table of all errors and their form in each API."""
    head = ("Error", "HTTP", "gRPC", "OpenAI `type`, `code`", "Generate", "TorchServe", "TGI")
    return table((*head, "Meaning"), error_rows())


def exit_codes_table() -> str:
    """Return the table of all exit codes."""
    return table(("Code", "Cause", "Errors"), exit_code_rows())


def helm_values() -> str:
    """Return the chart's table of values."""
    source = (ROOT / "helm" / "README.md").read_text()
    return source.partition("(written by make generate) -->\n")[2].partition("<!--")[0].strip()


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "errors": errors_table,
    "openai-keys": openai_keys_table,
    "refused-keys": lambda: refused_keys_table(REFUSED),
    "refused-response-keys": lambda: refused_keys_table(responses.REFUSED),
    "tgi-parameters": tgi_parameters_table,
    "kserve-flags": lambda: flags_table(KSERVE_FLAGS),
    "variables": lambda: table(("Variable", "Here"), variable_rows()),
    "vllm-flags": lambda: flags_table(VLLM_FLAGS),
    "tgi-flags": lambda: flags_table(TGI_FLAGS),
    "exit-codes": exit_codes_table,
    "helm-values": helm_values,
    "help": lambda: command_line.help_of(),
    "help-serve": lambda: command_line.help_of("serve"),
    "help-batch": lambda: command_line.help_of("batch"),
    "help-plan": lambda: command_line.help_of("plan"),
    "help-doctor": lambda: command_line.help_of("doctor"),
    "help-import-torchserve": lambda: command_line.help_of("import-torchserve"),
    "help-import-tgi": lambda: command_line.help_of("import-tgi"),
}
"""The generated regions by name."""
