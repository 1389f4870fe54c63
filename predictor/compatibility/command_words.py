"""The words of a command line in the forms of `argparse`, of all forms that vLLM's parser takes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

from predictor.compatibility.flag import SWITCH_VALUES

_KEY = re.compile(r"(?P<flag>--?[a-zA-Z_]+)\.(?P<keys>[\w.-]+)(?:=(?P<value>.*))?", re.DOTALL)
"""A word such as ``--hf_overrides.rope_theta=1e6``: a key of a flag that takes a JSON object."""


def normalize(words: Sequence[str], switches: Collection[str]) -> list[str]:
    """Return a command line with underscores, whole objects, and switches that take no other word.

    Args:
        words: The command line.
        switches: Flags that may stand without a value, with their dashes.
    """
    own = [_underscored(word) for word in words]
    end = own.index("--") if "--" in own else len(own)
    return [*_with_values(_with_objects(own[:end]), switches), *own[end:]]


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _with_objects(words: Sequence[str]) -> list[str]:
    """Put the keys of an object, one of which is in a word, together."""
    objects: dict[str, dict[str, Any]] = {}
    others = []
    remaining = iter(words)
    for word in remaining:
        if match := _KEY.fullmatch(word):
            value = match["value"] if match["value"] is not None else next(remaining, "")
            _put(objects.setdefault(match["flag"], {}), match["keys"].split("."), value)
        else:
            others.append(word)
    return [*others, *(f"{flag}={json.dumps(value)}" for flag, value in objects.items())]


def _put(target: dict[str, Any], keys: Sequence[str], text: str) -> None:
    *outer, last = keys
    for key in outer:
        inner = target.get(key)
        target[key] = inner if isinstance(inner, dict) else {}
        target = target[key]
    try:
        target[last] = json.loads(text)
    except ValueError:
        target[last] = text


def _with_values(words: Sequence[str], switches: Collection[str]) -> Iterator[str]:
    """Give a switch a value if the next word is none: it may be the model."""
    for word, following in pairwise((*words, "")):
        has_value = following.lower() in SWITCH_VALUES or following.startswith("-")
        yield f"{word}=true" if word in switches and following and not has_value else word
