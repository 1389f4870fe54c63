"""The report's rows, and what a rule says of one key of TorchServe's files.

Values are other people's: they are shown on one short line, whatever they hold, and those that look
like secrets are not shown at all.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from predictor.migration.torchserve_archive import TorchServeArchive

Outcome = Literal["taken over", "done otherwise", "no counterpart"]

_SECRET = re.compile(
    r"pass(word|wd|phrase)?s?\b|secret|credential|(?<!\w)token$|_token$|api_?key", re.I
)
_HIDDEN = "(not shown)"
_LONGEST_KEY = 64
_LONGEST_VALUE = 60
_MOST_PARTS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one key.

    Attributes:
        file: Where it was found.
        key: Its name there, after that of its section and a dot.
        value: What it said, as one short line.
        outcome: Whether that is done here.
        what: How, or why not.
    """

    file: str
    key: str
    value: str
    outcome: Outcome
    what: str


@dataclass(frozen=True, slots=True)
class KeyMapping:
    """What a rule says of one key.

    Attributes:
        outcome: Whether what it asks for is done here.
        what: How, or why not.
        settings: Settings that follow, by name.
        generation: Keys of ``generation_config.json`` that follow.
    """

    outcome: Outcome
    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    def row(self, file: str, key: str, value: Any) -> Row:
        """Returns it as a row of the report."""
        return Row(file, one_line(key, _LONGEST_KEY), shown(key, value), self.outcome, self.what)


Rule = Callable[[Any, "TorchServeArchive"], KeyMapping]
"""Judges a key by its value and everything that was found."""


def taken(what: str, **settings: Any) -> KeyMapping:
    """Returns that it is done here as it was."""
    return KeyMapping("taken over", what, settings)


def otherwise(what: str, **settings: Any) -> KeyMapping:
    """Returns that it is done here in another way."""
    return KeyMapping("done otherwise", what, settings)


def nothing(what: str) -> KeyMapping:
    """Returns that it is not done here."""
    return KeyMapping("no counterpart", what)


def always(verdict: KeyMapping) -> Rule:
    """Returns the rule that says the same of every value."""
    return lambda *_: verdict


UNKNOWN = nothing("not a key that is known here")


def shown(key: str, value: Any) -> str:
    """Returns a value as one short line; nothing of it where it looks like a secret."""
    if _SECRET.search(key.replace("-", "_")):
        return _HIDDEN
    if isinstance(value, str):
        return _HIDDEN if re.search(r"pass\w*=", value, re.I) else one_line(value, _LONGEST_VALUE)
    try:
        return one_line(_written(value, [_MOST_PARTS]), _LONGEST_VALUE)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return _HIDDEN


def one_line(text: str, most: int) -> str:
    """Returns the beginning of a text without what could move a terminal's cursor."""
    line = "".join(char if char.isprintable() else " " for char in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _written(value: Any, left: list[int]) -> str:
    """JSON of at most so many parts: what YAML's or JSON's nesting makes of a value may be huge."""
    left[0] -= 1
    if left[0] < 0:
        return "..."
    if isinstance(value, dict):
        return "{" + ", ".join(_parts(value, left)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_written(one, left) for one in value[:_MOST_PARTS]) + "]"
    if isinstance(value, str):
        return json.dumps(value[:_LONGEST_VALUE], ensure_ascii=False)
    return json.dumps(value, default=str)[:_LONGEST_VALUE]


def _parts(value: dict[Any, Any], left: list[int]) -> Iterator[str]:
    for key, one in itertools.islice(value.items(), _MOST_PARTS):
        said = _HIDDEN if _SECRET.search(str(key)) else _written(one, left)
        yield f"{json.dumps(str(key), ensure_ascii=False)}: {said}"
