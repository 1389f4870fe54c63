"""The words of a command line in the forms of `argparse`, of all forms that vLLM's parser takes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from predictor.compatibility.flag import ABSENT, SWITCH_VALUES

_KEY = re.compile(r"(?P<flag>--?[a-zA-Z_]+)\.(?P<keys>[\w.-]+)(?:=(?P<value>.*))?", re.DOTALL)
"""A word such as ``--hf_overrides.rope_theta=1e6``: a key of a flag that takes a JSON object."""


def normalize(
    words: Sequence[str], switches: Collection[str], objects: Mapping[str, str]
) -> list[str]:
    """Return a command line with underscores, whole objects, and switches that take no other word.

    Args:
        words: The command line.
        switches: Flags that may stand without a value, with their dashes.
        objects: The long names of flags that take a JSON object, by all their names.
    """
    own = [_underscored(word) for word in words]
    end = own.index("--") if "--" in own else len(own)
    return [*_with_values(_with_objects(own[:end], objects), switches), *own[end:]]


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _with_objects(words: Sequence[str], objects: Mapping[str, str]) -> Iterator[str]:
    """Put the keys of an object, one of which is in a word, into the object if it is given too."""
    keys: dict[str, list[tuple[str, str]]] = {}
    others = []
    remaining = iter(words)
    for word in remaining:
        match = _KEY.fullmatch(word)
        if match and match["flag"] in objects:
            value = match["value"] if match["value"] is not None else next(remaining, "")
            keys.setdefault(objects[match["flag"]], []).append((match["keys"], value))
        else:
            others.append(word)
    yield from others
    for flag, pairs in keys.items():
        target = _whole(flag, others, objects)
        if isinstance(target, dict):  # else its value is refused, or needs no keys
            for path, text in pairs:
                _put(target, path.split("."), text)
            yield f"{flag}={json.dumps(target)}"


def _whole(flag: str, words: Sequence[str], objects: Mapping[str, str]) -> Any:
    """Return the last value of a flag, by any of its names; an empty object if it has none."""
    value = ""
    for word, following in pairwise((*words, "")):
        name, equals, rest = word.partition("=")
        if objects.get(name) == flag:
            value = rest if equals else following
    return {} if value in ABSENT else _from_json(value)


def _put(target: dict[str, Any], keys: Sequence[str], text: str) -> None:
    *outer, last = keys
    for key in outer:
        inner = target.get(key)
        target[key] = inner if isinstance(inner, dict) else {}
        target = target[key]
    target[last] = _from_json(text)


def _from_json(text: str) -> Any:
    """Return the value of JSON, or the text if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _with_values(words: Iterable[str], switches: Collection[str]) -> Iterator[str]:
    """Give a switch a value if the next word is none: it may be the model."""
    for word, following in pairwise((*words, "")):
        is_value = following.lower() in SWITCH_VALUES or following in ABSENT
        has_value = is_value or following.startswith("-")
        yield f"{word}=true" if word in switches and not has_value else word
