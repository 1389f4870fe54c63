"""KServe's custom resource definitions as JSON schemas, for what is applied to a cluster.

They lie beside the repository where it is developed; without them a test is skipped, or fails if
REQUIRE_SHARED=1.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

from tests.skips import skip_or_fail

CRDS = Path(__file__).parents[2] / "shared" / "crds"


def faults(document: dict[str, Any]) -> list[str]:
    """Returns what a KServe resource says that its definition does not know or allow."""
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in Draft7Validator(_schema(document["kind"])).iter_errors(document)
    ]


@functools.cache
def _schema(kind: str) -> Any:
    file = CRDS / f"serving.kserve.io_{kind.lower()}s.yaml"
    if not file.exists():
        skip_or_fail(f"KServe's definition of {kind} is not at {file}", "REQUIRE_SHARED")
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    return _closed(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    """The schema, in which a field that it does not know is a fault: the API server prunes it."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and "type" in schema and not is_open:
        closed["additionalProperties"] = False
    return closed
