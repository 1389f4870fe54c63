"""The schema and the table of values in the chart equal a fresh generation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from helm import dashboard
from helm import generate as generated

REMEDY = "run: make generate"


def test_the_schema_of_settings_is_the_predictors() -> None:
    assert json.loads(generated.SCHEMA.read_text()) == generated.schema(), REMEDY


def test_the_table_of_values_is_that_of_the_chart() -> None:
    assert generated.README.read_text() == generated.readme(), REMEDY


def test_the_dashboard_is_what_its_rows_say() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), REMEDY


def test_every_value_has_a_comment() -> None:
    assert [path for path, _, comment in generated.described() if not comment] == []


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{above}{name}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")


def _declared(schema: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in schema.get("properties", {}).items():
        yield f"{above}{name}"
        yield from _declared(value, f"{above}{name}.")


def test_the_schema_and_the_values_know_the_same_names() -> None:
    values = yaml.safe_load((generated.CHART / "values.yaml").read_text())
    written = set(_leaves(values))
    declared = set(_declared(generated.schema())) - {"global"}
    of_kubernetes = ("settings.", "podSecurityContext.", "securityContext.", "affinity.")
    assert {n for n in declared - written if not n.startswith(of_kubernetes)} == set()
    assert {n for n in written - declared if not n.startswith(of_kubernetes)} == set()


def _open(schema: Any, place: str = "") -> Iterator[str]:
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("additionalProperties") is not False:
            yield place
        for name, part in schema.items():
            yield from _open(part, f"{place}/{name}")


def test_no_group_of_values_is_open() -> None:
    assert list(_open(generated.schema())) == []
