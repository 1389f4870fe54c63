"""The control tokens in what others than the author of an application write, told apart from text.

A tokenizer takes the text of a special token for that token wherever it stands. So a mark is put
behind the first character of each, and `predictor.tasks.prompt_encoder` tokenises apart what is
before and what is behind it. The marks go through the chat template, whatever it does with texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken

from predictor.errors import RequestError
from predictor.tasks.request import Conversation, Message

_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode's noncharacters, which texts that are interchanged do not have."""

_CALLERS = frozenset({"user", "tool"})
_PREFIX = 64
"""Characters of a control token that are looked for: as many tell it from other text."""

_PIECE = 64 * 1024
"""Characters that are searched in one call, which keeps all other threads waiting meanwhile."""


class ControlTokens:
    """The tokens by which a model tells the parts of a conversation apart."""

    def __init__(self, tokenizer: Any, templates: str) -> None:
        """Take those of a tokenizer, which are matched as they are written from now on.

        A token of one character cannot be told from its text.

        Args:
            tokenizer: The tokenizer.
            templates: The texts of its chat templates. What was added to the vocabulary and is in
                them is a control token, too.
        """
        added = list(tokenizer.added_tokens_decoder.values())
        special = {*tokenizer.all_special_tokens, *(one.content for one in added if one.special)}
        written = {one.content for one in added if one.content in templates}
        self._of_callers = _compile(special | written)
        self._of_replies = _compile(special)  # templates look for others, such as "</think>"
        # Else they would be found in the normalised text, where they may be written otherwise.
        tokenizer.add_tokens(
            [
                AddedToken(one.content, **_options(one), special=one.special, normalized=False)
                for one in added
                if one.normalized and one.content in special | written
            ]
        )

    def mark(self, conversation: Conversation) -> tuple[Sequence[Message], str]:
        """Return the turns with marks in all but the system's, and the mark; empty if none is.

        Raises:
            RequestError: No character is left for a mark.
        """
        turns = conversation.messages
        patterns = [self._pattern(turn.role) for turn in turns]
        if not any(map(_has_any, turns, patterns)):
            return turns, ""
        whole = json.dumps(asdict(conversation), ensure_ascii=False, default=str)
        mark = next((mark for mark in _MARKS if mark not in whole), None)
        if mark is None:
            raise RequestError("The conversation has all of Unicode's noncharacters.")
        return [
            turn if pattern is None else _marked(turn, pattern, mark)
            for turn, pattern in zip(turns, patterns, strict=True)
        ], mark

    def _pattern(self, role: str) -> re.Pattern[str] | None:
        if role in _CALLERS:
            return self._of_callers
        return self._of_replies if role == "assistant" else None


def _options(token: AddedToken) -> dict[str, bool]:
    return {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word")}


def _has_any(turn: Message, pattern: re.Pattern[str] | None) -> bool:
    if pattern is None:
        return False
    return any(_positions(pattern, text) for text in _strings([turn.content, turn.extra]))


def _marked(turn: Message, pattern: re.Pattern[str], mark: str) -> Message:
    def change(text: str) -> str:
        ends = [0, *_positions(pattern, text), len(text)]
        return mark.join(text[start:end] for start, end in pairwise(ends))

    return replace(turn, content=change(turn.content), extra=_changed(turn.extra, change))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value of JSON with all its strings changed, the names of an object among them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _changed(own, change) for name, own in value.items()}
    return [_changed(own, change) for own in value] if isinstance(value, list | tuple) else value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _strings(own)


def _positions(pattern: re.Pattern[str], text: str) -> list[int]:
    """Return the positions behind the first characters of control tokens."""
    return [
        match.end()
        for start in range(0, len(text), _PIECE)
        for match in pattern.finditer(text, start, start + _PIECE + _PREFIX)
        if match.start() < start + _PIECE
    ]


def _compile(tokens: Collection[str]) -> re.Pattern[str]:
    """Return what matches the first character of each token, those within others too."""
    tree: dict[str, Any] = {}
    for token in tokens:
        node = tree
        for char in token[:_PREFIX] if len(token) > 1 and token.strip() else "":
            node = node.setdefault(char, {})
        if node is not tree:
            node[""] = {}
    first = (f"{re.escape(char)}(?={_alternatives(rest)})" for char, rest in tree.items())
    return re.compile("|".join(first) or "(?!)")


def _alternatives(node: Mapping[str, Any]) -> str:
    if "" in node:
        return ""
    branches = [re.escape(char) + _alternatives(rest) for char, rest in node.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
