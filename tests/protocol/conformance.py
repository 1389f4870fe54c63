"""Runs the Open Inference Protocol's own OpenAPI document against a server that is up.

There is no official conformance suite, so the document is the judge, twice: schemathesis derives
requests from it (valid and invalid) and checks every answer, and `live_responses` of well-formed
calls are held against the response schemas one by one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from openapi_schema_validator import OAS30Validator

from tests.skips import skip_or_fail

SPEC = Path(__file__).parents[3] / "shared" / "spec" / "open_inference_rest.yaml"

_INFER_BODY = {
    "id": "42",
    "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["one", "two"]}],
    "parameters": {"max_new_tokens": 4},
}

# JSON Schema cannot say that a shape must agree with its data, or which inputs a model takes: most
# bodies that are valid by the document are invalid by the protocol's text, whose answer is a 400.
# A request that the document forbids must still be refused (negative_data_rejection stays on).
_CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400"]
"""


@dataclass(frozen=True)
class Live:
    """A response of the server and the name of the schema that it must follow."""

    path: str
    schema: str
    document: Any


def require_spec() -> Path:
    """Returns the path of the document; without it the test is skipped, or fails if told so."""
    if not SPEC.exists():
        skip_or_fail(f"the protocol's OpenAPI document is not at {SPEC}", "REQUIRE_SHARED")
    return SPEC


def run_conformance(base_url: str, model_name: str, work: Path, *, examples: int) -> None:
    """Runs schemathesis with all checks, the same requests every time; fails with its report.

    `work` is an empty folder for the adapted document; `examples` are for each operation.
    """
    document = _with_own_paths(model_name, _version(base_url, model_name))
    (work / "spec.yaml").write_text(yaml.safe_dump(document))
    (work / "schemathesis.toml").write_text(_CONFIGURATION)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"),
        *("spec.yaml", "--url", base_url, "--checks", "all", "--max-examples", str(examples)),
        *("--phases", "examples,coverage,fuzzing"),
        *("--generation-deterministic", "--continue-on-failure"),
    ]
    run = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def check_live_responses(base_url: str, model_name: str) -> None:
    """Checks responses against the document's schemas, and that nothing in them is null."""
    for live in live_responses(base_url, model_name):
        schema = {"$ref": f"#/components/schemas/{live.schema}", **_components()}
        errors = [error.message for error in OAS30Validator(schema).iter_errors(live.document)]
        assert not errors, f"{live.path}: {errors}"
        assert not list(_nulls(live.document)), f"{live.path} has null at {_nulls(live.document)}"


def live_responses(base_url: str, model_name: str) -> Iterator[Live]:
    """Yields the response of every kind of call that the document has a schema for."""
    version = _version(base_url, model_name)
    with httpx.Client(base_url=base_url, timeout=120) as client:
        for path in ("/v2", "/v2/"):
            yield Live(path, "metadata_server_response", _json(client.get(path), 200))
        plain = f"/v2/models/{model_name}"
        for path in (plain, f"{plain}/versions/{version}"):
            yield Live(path, "metadata_model_response", _json(client.get(path), 200))
            infer = f"{path}/infer"
            answer = _json(client.post(infer, json=_INFER_BODY), 200)
            yield Live(infer, "inference_response", answer)
            some = {**_INFER_BODY, "outputs": [{"name": "text"}]}
            yield Live(infer, "inference_response", _json(client.post(infer, json=some), 200))
            refusal = _json(client.post(infer, json={"inputs": []}), 400)
            yield Live(infer, "inference_error_response", refusal)
        unknown = _json(client.get("/v2/models/nobody"), 404)
        yield Live("/v2/models/nobody", "metadata_model_error_response", unknown)


def _json(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def _version(base_url: str, model_name: str) -> str:
    response = httpx.get(f"{base_url}/v2/models/{model_name}")
    return str(_json(response, 200)["versions"][0])


def _components() -> dict[str, Any]:
    return {"components": yaml.safe_load(SPEC.read_text())["components"]}


def _nulls(value: Any, where: str = "$") -> Iterator[str]:
    if value is None:
        yield where
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        yield from _nulls(item, f"{where}.{key}")


def _with_own_paths(model_name: str, version: str) -> dict[str, Any]:
    """Returns the document with this model's paths and an example that it can answer."""
    document: dict[str, Any] = yaml.safe_load(SPEC.read_text())
    paths: dict[str, Any] = {}
    for path, item in document["paths"].items():
        item.pop("parameters", None)
        for operation in (value for value in item.values() if isinstance(value, dict)):
            operation.pop("operationId", None)
            if "requestBody" in operation:
                operation["requestBody"]["required"] = True
                content = operation["requestBody"]["content"]["application/json"]
                content["example"] = _INFER_BODY
        named = path.replace("${MODEL_NAME}", model_name)
        paths[named.replace("${MODEL_VERSION}", version)] = item
    document["paths"] = paths
    return document
