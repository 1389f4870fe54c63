"""The memory of compiled grammars: kept for the next request, and bounded in bytes.

llguidance says of no grammar how large it is, but bounds the states of its automaton, which grow as
replies follow it. So each has as many states as its text may need, and counts with its text and
with all of its states. If there is no room for one more, those that no reply follows are dropped.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llguidance import LLMatcher

_LEAST_STATES = 500
"""States of a grammar besides what it counts and repeats. JSON schemas of 60 tools, formats, long
enumerations and regular expressions for addresses need 20 to 150."""

_STATES_PER_COUNT, _STATES_PER_WIDE_COUNT = 8, 32
"""States for each repetition that a grammar counts, such as ``maxLength``: a character of a JSON
string needs up to 5, since it may be written as an escape. One of a class of Unicode needs up to
20, by the bytes that it shares with others of the class."""

_MOST_STATES = 10_000
"""A text of some 2,000 characters whose length is bounded needs as many."""

_STATE_BYTES = 2048
"""A state takes some 600 to 1,000 bytes, and more if many regular expressions share it."""

_BYTES_PER_BYTE = 224
"""Bytes of a compiled grammar for each byte of its text. Tools take some 80; an object of thousands
of properties without a type takes 215, the most that was seen."""

_COUNTED = re.compile(
    r"(?:Length|Items|Properties|Contains|multipleOf)\W{1,8}(\d+)"
    r"|\{(\d*)(?:,\s?(\d+))?"
    r"|~\s?(\d+)(?:\.\.(\d+))?"
)
"""What counts: keywords of JSON schemas, quantifiers such as ``{2,3}``, and Lark's ``~2..3``."""

_GROUP = re.compile(
    r"(?:\)|(?<![\\\w])[A-Z_][A-Z_0-9]*)\s?(?:\{(\d*)(?:,\s?(\d+))?|~\s?(\d+)(?:\.\.(\d+))?)"
)
"""Counts of groups and of Lark's terminals, with which the counts and the text inside multiply."""

_WIDE = re.compile(r"\\[wWdDsSpP]|\[[^\]\[\"]*(?:[^\x00-\x7f]|\\[ux])")
"""Classes of characters that are written in many ways as bytes."""

_TEXT = re.compile(
    r'(?:description|title)\\?"\s?:\s?\\?"(?:[^"\\\n]|\\[^"])*|((?:[^"\\\n]|\\[^"])+)'
)
"""Texts between quotes, and between strings. No reply repeats descriptions."""

_KEYWORD = re.compile(
    r"type|properties|required|items|enum|const|anyOf|oneOf|allOf|additionalProperties|\$ref|format"
    r"|pattern|string|integer|number|boolean|object|array|null"
)
"""Frequent words of a schema that no reply repeats."""


def states_of(grammar: str) -> int:
    """Return the most states that a grammar may have, by what it counts and repeats."""
    each = _STATES_PER_WIDE_COUNT if _WIDE.search(grammar) else _STATES_PER_COUNT
    counted = sum(count for counts in _counts(_COUNTED, grammar) for count in counts)
    states = _LEAST_STATES + _literal_bytes(grammar) + each * counted
    for counts in _counts(_GROUP, grammar):
        states = min(states * max(1, *counts), _MOST_STATES)
    return min(states, _MOST_STATES)


def _literal_bytes(grammar: str) -> int:
    """Return the most bytes of names and values that a reply repeats; each takes a state."""
    texts = (text for text in _TEXT.findall(grammar) if not _KEYWORD.fullmatch(text))
    return sum(len(text.encode()) for text in texts if any(map(str.isalnum, text)))


def _counts(pattern: re.Pattern[str], grammar: str) -> Iterator[tuple[int, ...]]:
    """Yield the numbers of each match; large ones are all alike."""
    for groups in pattern.findall(grammar):
        yield 0, *(int(digits[:6]) for digits in groups if digits)


def weight_of(grammar: str) -> int:
    """Return the most bytes that a compiled grammar takes."""
    return states_of(grammar) * _STATE_BYTES + len(grammar) * _BYTES_PER_BYTE


def largest_weight(size: int) -> int:
    """Return the most bytes of a compiled grammar whose text has so many bytes as it was sent."""
    return _MOST_STATES * _STATE_BYTES + _written(size) * _BYTES_PER_BYTE


def _written(size: int) -> int:
    """Return the bytes of a text in llguidance's form, where quotes are escaped."""
    return size + size // 4


@dataclass(eq=False, slots=True)
class Compiled:
    """A compiled grammar.

    Attributes:
        matcher: Is at the grammar's beginning; replies follow copies of it.
        weight: The most bytes that it takes, its copies included.
        users: Replies that follow it.
    """

    matcher: LLMatcher
    weight: int
    users: int = 0


class GrammarMemory:
    """Compiled grammars within a number of bytes. One thread adds to them.

    Attributes:
        on_leave: Called when a reply has ended, by any thread at any moment: it takes no locks.
    """

    def __init__(self, most: int) -> None:
        """Begin with none.

        Args:
            most: Most bytes of all together. One that is larger is held alone.
        """
        self._most = most
        self._used = 0
        self._latest: OrderedDict[str, Compiled] = OrderedDict()
        self._lock = threading.RLock()  # reentrant, see `_leave`
        self.on_leave: Callable[[], object] = lambda: None

    @property
    def used(self) -> int:
        """Most bytes that all compiled grammars take."""
        return self._used

    def get(self, grammar: str) -> Compiled | None:
        """Return a grammar that is compiled."""
        with self._lock:
            return self._latest.get(grammar)

    def make_room(self, grammar: str) -> bool:
        """Drop grammars that are not followed, oldest first; return whether there is room for one.

        Args:
            grammar: Its text. If it is there already, it is dropped, for it is to be replaced.
        """
        weight = weight_of(grammar)
        with self._lock:
            self._drop(grammar)
            for text in [text for text, one in self._latest.items() if not one.users]:
                if self._has_room(weight):
                    break
                self._drop(text)
            return self._has_room(weight)

    def _has_room(self, weight: int) -> bool:
        return not self._used or self._used + weight <= self._most

    def add(self, grammar: str, matcher: LLMatcher) -> Compiled:
        """Keep a grammar for which there is room."""
        compiled = Compiled(matcher, weight_of(grammar))
        with self._lock:
            self._latest[grammar] = compiled
            self._used += compiled.weight
        return compiled

    def hold(self, grammar: str, compiled: Compiled, user: object) -> None:
        """Count a grammar as followed for as long as an object lives, which holds a copy of it."""
        with self._lock:
            compiled.users += 1
            if self._latest.get(grammar) is compiled:
                self._latest.move_to_end(grammar)
        weakref.finalize(user, self._leave, grammar, compiled).atexit = False

    def _drop(self, grammar: str) -> None:
        compiled = self._latest.pop(grammar, None)
        if compiled is not None and not compiled.users:
            self._used -= compiled.weight

    def _leave(self, grammar: str, compiled: Compiled) -> None:
        """Take that a reply has ended; any thread may call it, even within this class."""
        with self._lock:
            compiled.users -= 1
            if not compiled.users and self._latest.get(grammar) is not compiled:
                self._used -= compiled.weight
        self.on_leave()
