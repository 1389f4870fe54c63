"""OpenAI's and vLLM's keys for the form of a reply: JSON by a schema, an expression, choices.

OpenAI has ``response_format``. vLLM has besides ``guided_json`` and its like, and an object
``structured_outputs`` in place of them (``vllm/sampling_params.py``, ``StructuredOutputsParams``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    check_nesting,
    optional,
    parse_json,
    present,
    require_type,
)
from predictor.sentences import quote
from predictor.tasks.request import Grammar

_VLLM = ("json", "regex", "choice", "grammar")
_OBJECT_KEY = "structured_outputs"
_FORMATS = ("text", "json_object", "json_schema")

KEYS = ("response_format", _OBJECT_KEY, *(f"guided_{name}" for name in _VLLM))
"""Keys of requests that are read here."""

IGNORED = frozenset({"guided_decoding_backend", "guided_whitespace_pattern"})
"""vLLM's keys that change nothing here: there is one backend, and one style of spaces."""

_IGNORED_OPTIONS = (
    *("disable_any_whitespace", "whitespace_pattern"),
    *("backend", "_backend", "_backend_was_auto", "disable_fallback"),
)
SCHEMA_KEYS = ("name", "description", "schema", "strict")
"""Keys of a schema and what goes with it."""

NESTED_KEYS: Mapping[str, tuple[str, ...]] = {
    "response_format": ("type", "json_schema"),
    "response_format.json_schema": SCHEMA_KEYS,
    _OBJECT_KEY: (*_VLLM, "json_object", *_IGNORED_OPTIONS),
}
"""Keys of the objects that are read here; others are ignored."""

_TAGS = "structural_tag"
_ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')


def grammar_of(given: Mapping[str, object]) -> Grammar | None:
    """Return what a reply must follow; None if it is any text.

    Raises:
        RequestError: A key has another form, or two of them ask for a form.
    """
    grammars = {key: grammar for key in KEYS if key in given and (grammar := _read(key, given))}
    if len(grammars) > 1:
        raise RequestError(f"{' and '.join(grammars)} cannot be combined; give one of them.")
    return next(iter(grammars.values()), None)


def schema_text(schema: object, where: str) -> str:
    """Return a JSON schema as text.

    Raises:
        RequestError: It is no object or boolean.
    """
    if not isinstance(schema, dict | bool):
        raise RequestError(f"{where} must be a JSON schema, which is an object.")
    return json.dumps(schema)


def _read(key: str, given: Mapping[str, object]) -> Grammar | None:
    if key == "response_format":
        return format_grammar(require_type(given[key], dict, key), key, "json_schema")
    if key == _OBJECT_KEY:
        return _structured_outputs(require_type(given[key], dict, key))
    return _READERS[key.removeprefix("guided_")](given[key], key)


def format_grammar(given: Mapping[str, object], where: str, holder: str = "") -> Grammar | None:
    """Return what OpenAI's object of a format asks for; None for any text.

    Args:
        given: The object.
        where: Its place in the body, for errors.
        holder: The key of the schema and what goes with it; empty if they are in the object itself.

    Raises:
        RequestError: A key has another form.
    """
    sort = require_type(given.get("type"), str, f"{where}.type")
    if sort not in _FORMATS:
        raise RequestError(f"{where}.type must be one of {', '.join(_FORMATS)}, not {quote(sort)}.")
    if sort == "text":
        return None
    if sort == "json_object":
        return _ANY_OBJECT
    inner, keys = where, dict(given)
    if holder:
        inner = f"{where}.{holder}"
        keys = require_type(given.get(holder), dict, inner)
    return _schema_grammar({key: each for key, each in keys.items() if key != "type"}, inner)


def _schema_grammar(holder: Mapping[str, object], where: str) -> Grammar:
    given = present(holder)
    is_strict = optional(given, "strict", bool, f"{where}.strict")
    text = schema_text(given.get("schema"), f"{where}.schema")
    return Grammar("json_schema", text, is_lenient=is_strict is False)


def _structured_outputs(given: Mapping[str, object]) -> Grammar | None:
    keys = present(given)
    if _TAGS in keys:
        raise RequestError(f"{_OBJECT_KEY}.{_TAGS} is not supported; 'grammar' takes its place.")
    where = f"{_OBJECT_KEY}.json_object"
    named = [name for name in _VLLM if name in keys]
    wants_object = optional(keys, "json_object", bool, where)
    if len(named) + bool(wants_object) > 1:
        raise RequestError(f"{_OBJECT_KEY} takes one of {', '.join(_VLLM)} and json_object.")
    if wants_object:
        return _ANY_OBJECT
    grammars = (_READERS[name](keys[name], f"{_OBJECT_KEY}.{name}") for name in named)
    return next(grammars, None)


def json_grammar(value: object, where: str) -> Grammar:
    """Return the grammar of a schema, which may also be given as text, as vLLM allows.

    Raises:
        RequestError: It is no schema.
    """
    if not isinstance(value, str):
        return Grammar("json_schema", schema_text(value, where))
    try:
        schema = parse_json(value.encode())
    except RequestError:
        raise RequestError(f"{where} is a text that is no JSON.") from None
    check_nesting(schema)
    return Grammar("json_schema", schema_text(schema, where))


def regex_grammar(value: object, where: str) -> Grammar:
    """Return the grammar of a regular expression.

    Raises:
        RequestError: It is no text, or an empty one.
    """
    return Grammar("regex", _text(value, where))


def _choice(value: object, where: str) -> Grammar:
    choices = value if isinstance(value, list) else []
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise RequestError(f"{where} must be a list of strings, at least one.")
    return Grammar("choice", json.dumps(choices))


def _grammar(value: object, where: str) -> Grammar:
    return Grammar("grammar", _text(value, where))


def _text(value: object, where: str) -> str:
    text = require_type(value, str, where)
    if not text:
        raise RequestError(f"{where} is empty.")
    return text


_READERS: Mapping[str, Callable[[object, str], Grammar]] = {
    "json": json_grammar,
    "regex": regex_grammar,
    "choice": _choice,
    "grammar": _grammar,
}
