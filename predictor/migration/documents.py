"""Parse an archive's JSON, YAML and properties files, none of which is trusted.

A malformed file raises an error of one sentence. YAML tags that construct Python objects are
ignored, and YAML that would take unbounded time or memory is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from predictor.errors import ArchiveError, reason_of
from predictor.migration.display import one_line
from predictor.migration.properties import parse_properties

_MAX_DEPTH, _MAX_EVENTS = 32, 20_000
_LONG_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxXob_:]{300,}")
"""YAML accepts such numbers in base 16; Python then refuses to print them."""

_JSON_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
"""The YAML tags of the kinds of values that JSON has."""


def parse_json(content: str | bytes, file: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        content: The file's content.
        file: Its name, for error sentences.

    Raises:
        ArchiveError: The content is not a JSON object.
    """
    return _parse_object(content, file, "JSON", json.loads)


def parse_yaml(content: bytes, file: str) -> dict[str, Any]:
    """Return the YAML mapping in a file; an empty one if the file is blank.

    Args:
        content: The file's content.
        file: Its name, for error sentences.

    Raises:
        ArchiveError: The content is not a YAML mapping, or is unreasonably large or nested.
    """
    if not content.strip():
        return {}
    return _parse_object(content, file, "YAML", _load_yaml)


def parse_java_properties(content: bytes, file: str) -> dict[str, str]:
    """Return the keys and values of a Java properties file.

    Args:
        content: The file's content.
        file: Its name, for error sentences.

    Raises:
        ArchiveError: The content is malformed.
    """
    try:
        return parse_properties(content.decode("latin-1"))
    except ValueError as error:
        raise ArchiveError(f"{file} cannot be read as properties: {_reason(error)}.") from None


def _parse_object(
    content: str | bytes, file: str, kind: str, load: Callable[[Any], Any]
) -> dict[str, Any]:
    try:
        value = load(content)
        if isinstance(value, dict):
            return {str(key): member for key, member in value.items()}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ArchiveError(f"{file} cannot be read as {kind}: {_reason(error)}.") from None
    raise ArchiveError(f"{file} must hold one {kind} object.")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return one_line(reason_of(error), 160).rstrip(".")


class _PlainLoader(yaml.SafeLoader):
    """Constructs only the kinds of values that JSON has. A date stays text."""


_PlainLoader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _JSON_TAGS
} | {"tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str}


def _load_yaml(content: bytes) -> Any:
    _check_yaml(content)
    try:
        return yaml.load(content, _PlainLoader)  # noqa: S506 - a subset of the safe loader
    except (LookupError, TypeError, AttributeError, ArithmeticError):
        raise ValueError("it has a value that is not what its tag or form says") from None


def _check_yaml(content: bytes) -> None:
    """Refuse YAML that would take PyYAML unbounded time or memory. Its events come one by one."""
    depth = 0
    for number, event in enumerate(yaml.parse(content, yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or number > _MAX_EVENTS:
            raise ValueError("it is longer or nested more deeply than a configuration is")
        if isinstance(event, yaml.AliasEvent):  # with merge keys a few lines expand to terabytes
            raise ValueError("it has aliases, which are not read")
        if isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value):
            raise ValueError("it has a number of hundreds of digits")
