"""Write the generated parts of the chart: schema of `settings`, table of values, and dashboard.

The schema follows the predictor's settings, the table follows the comments of `values.yaml`, and
`dashboard.py` has the dashboard.
`make generate` runs this module; `tests/deploy/test_generated.py` compares the committed files
with a fresh generation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BeforeValidator

from helm import dashboard
from predictor.quantity import parse_bytes
from predictor.settings import Settings
from predictor.settings_types import _devices, _memory_by_device

CHART = Path(__file__).parent
SCHEMA = CHART / "values.schema.json"
VALUES = CHART / "values.yaml"
README = CHART / "README.md"
BEGIN, END = "<!-- values: begin (written by make generate) -->\n", "<!-- values: end -->\n"

SET_BY_OTHER_VALUES = {
    *("model_name", "model_dir", "model_id", "model_revision"),
    *("offload_folder", "host", "http_port", "grpc_port"),
}
"""Settings that the chart derives from other values, such as `model.uri` and `offload`."""

_COPIED = frozenset({"podSecurityContext", "securityContext"})
"""Groups that templates copy as they are, so that all of them may be null."""

_AMOUNT = {"type": ["integer", "string"]}
_INPUT_SCHEMAS: dict[Any, dict[str, Any]] = {
    parse_bytes: _AMOUNT,
    _memory_by_device: {"type": "object", "additionalProperties": _AMOUNT},
    _devices: {"type": ["string", "integer", "object"], "additionalProperties": _AMOUNT},
}
"""The schema of a value before a validator converts it to the type in pydantic's schema."""


def settings_schema() -> dict[str, Any]:
    """Return the schema of `settings`, without the settings that other values determine."""
    fields = Settings.model_json_schema()["properties"]
    own = {name: _setting(name, fields[name]) for name in fields if name not in SET_BY_OTHER_VALUES}
    return {"type": "object", "additionalProperties": False, "properties": own}


def _setting(name: str, field: dict[str, Any]) -> dict[str, Any]:
    schema = {key: value for key, value in field.items() if key not in ("title", "default")}
    schema["description"] = re.sub(r"\s+", " ", schema["description"])
    for check in Settings.model_fields[name].metadata:
        if isinstance(check, BeforeValidator) and check.func in _INPUT_SCHEMAS:
            return {"description": schema["description"], **_INPUT_SCHEMAS[check.func]}
    return schema


def schema() -> dict[str, Any]:
    """Return the whole schema: the hand-written part and the current settings."""
    whole: dict[str, Any] = json.loads(SCHEMA.read_text())
    whole["properties"]["settings"] = settings_schema()
    _require(whole, yaml.safe_load(VALUES.read_text()))
    return whole


def _require(schema: dict[str, Any], values: dict[str, Any]) -> None:
    """Require the groups and the switches that templates look into, which a null takes away."""
    groups = [name for name, value in values.items() if value and isinstance(value, dict)]
    groups = [name for name in groups if name not in _COPIED]
    switches = [name for name, value in values.items() if isinstance(value, bool)]
    if groups or switches:
        schema["required"] = [*groups, *switches]
    for name in groups:
        own = schema["properties"][name]
        if "properties" in own:
            _require(own, values[name])


def table() -> str:
    """Return the table of values as Markdown."""
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    rows += [f"| `{path}` | {default} | {meaning} |" for path, default, meaning in described()]
    return "\n".join(rows) + "\n"


def described() -> Iterator[tuple[str, str, str]]:
    """Yield path, default and comment of each value; a group only if it has a comment."""
    text = VALUES.read_text()
    yield from _described(yaml.compose(text, yaml.CSafeLoader), text.splitlines(), "")


def _described(node: Any, lines: list[str], above: str) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        path, comment = f"{above}{key.value}", _comment(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and value.value:
            if comment:
                yield path, "", comment
            yield from _described(value, lines, f"{path}.")
        else:
            yield path, f"`{json.dumps(yaml.safe_load(yaml.serialize(value)))}`", comment


def _comment(lines: list[str], line: int) -> str:
    above: list[str] = []
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        above.insert(0, lines[line].strip().removeprefix("#").strip())
    return " ".join(above)


def readme() -> str:
    """Return the chart's README with the current table."""
    before, _, rest = README.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n")
    README.write_text(readme())
    dashboard.FILE.write_text(dashboard.text())
