"""The parts of the chart that are made: the schema of `settings`, and the table of values.

`make chart` writes them into the chart; `test_generated.py` holds what is committed equal to this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BeforeValidator

from predictor.quantity import parse_bytes
from predictor.settings import Settings
from predictor.settings_types import _devices, _memory_by_device

CHART = Path(__file__).parents[2] / "helm"
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
BEGIN, END = "<!-- values: begin (made by: make chart) -->\n", "<!-- values: end -->\n"

SAID_BY_OTHER_VALUES = {
    *("model_name", "model_dir", "model_id", "model_revision"),
    *("offload_folder", "host", "http_port", "grpc_port"),
}

_AMOUNT = {"type": ["integer", "string"]}
_WRITTEN = {
    parse_bytes: _AMOUNT,
    _memory_by_device: {"type": "object", "additionalProperties": _AMOUNT},
    _devices: {"type": ["string", "integer", "object"], "additionalProperties": _AMOUNT},
}
"""What people may write where a setting's validator turns it into what pydantic's schema says."""


def settings_schema() -> dict[str, Any]:
    """The schema of the chart's `settings`: the predictor's, less what other values say."""
    made = Settings.model_json_schema()["properties"]
    own = {name: _setting(name, made[name]) for name in made if name not in SAID_BY_OTHER_VALUES}
    return {"type": "object", "additionalProperties": False, "properties": own}


def _setting(name: str, made: dict[str, Any]) -> dict[str, Any]:
    schema = {key: value for key, value in made.items() if key not in ("title", "default")}
    schema["description"] = re.sub(r"\s+", " ", schema["description"])
    for check in Settings.model_fields[name].metadata:
        if isinstance(check, BeforeValidator) and check.func in _WRITTEN:
            return {"description": schema["description"], **_WRITTEN[check.func]}
    return schema


def schema() -> dict[str, Any]:
    """The chart's schema: what is written by hand, with the settings as they are now."""
    values = json.loads(SCHEMA.read_text())
    values["properties"]["settings"] = settings_schema()
    return values


def table() -> str:
    """The table of values, from the comments of `values.yaml`."""
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    rows += [f"| `{path}` | {default} | {meaning} |" for path, default, meaning in described()]
    return "\n".join(rows) + "\n"


def described() -> Iterator[tuple[str, str, str]]:
    """The values of `values.yaml`: path, default and comment; groups only where they have one."""
    text = (CHART / "values.yaml").read_text()
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
    """The chart's README, with the table as it is now."""
    before, _, rest = README.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n")
    README.write_text(readme())
