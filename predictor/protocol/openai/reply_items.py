"""A reply as a row of items: reasoning, text and calls of functions, whole and as it is streamed.

APIs that have each as an object of its own, with a beginning and an end, write their events by
these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from predictor.tasks.answers import Completion, Piece, ScoredToken

Kind: TypeAlias = Literal["reasoning", "text", "call"]


@dataclass(frozen=True, slots=True)
class Item:
    """A part of a reply.

    Attributes:
        kind: What it is.
        text: The text, or the arguments of a call as JSON.
        call_id: The id of a call.
        function: The function that it calls.
        tokens: The tokens of a text, if log probabilities were requested.
    """

    kind: Kind
    text: str = ""
    call_id: str = ""
    function: str = ""
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """An item begins, which has no text yet."""

    index: int
    item: Item


@dataclass(frozen=True, slots=True)
class Extended:
    """An item goes on with a text, and the tokens of it."""

    index: int
    kind: Kind
    text: str
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """An item is complete, or is the last one of a reply that was cut."""

    index: int
    item: Item


ItemChange: TypeAlias = Opened | Extended | Closed


def items_of(completion: Completion) -> list[Item]:
    """Return the items of a whole reply; a reply of nothing is an empty text."""
    items = [Item("reasoning", completion.reasoning)] if completion.reasoning else []
    is_text = completion.text or not (items or completion.calls)
    if is_text:
        items.append(Item("text", completion.text, tokens=completion.tokens))
    calls = (
        Item("call", call.arguments, call_id=call.id, function=call.name)
        for call in completion.calls
    )
    return [*items, *calls]


@dataclass(slots=True)
class _Growing:
    """An item that is written."""

    item: Item
    texts: list[str] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)

    def whole(self) -> Item:
        return replace(self.item, text="".join(self.texts), tokens=tuple(self.tokens))


class StreamedItems:
    """The items of one streamed reply.

    Attributes:
        items: The ones that are complete.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.items: list[Item] = []
        self._current: _Growing | None = None
        self._calls: set[int] = set()
        self._tokens: list[ScoredToken] = []

    def feed(self, piece: Piece) -> Iterator[ItemChange]:
        """Yield what a piece changes; its last one closes the last item."""
        self._tokens += piece.tokens
        if piece.reasoning:
            yield from self._extend("reasoning", piece.reasoning)
        if piece.text:
            yield from self._extend("text", piece.text)
        for part in piece.calls:
            if part.index not in self._calls:
                self._calls.add(part.index)
                yield from self._open(Item("call", "", part.id or "", part.name or ""))
            if part.arguments:
                yield from self._extend("call", part.arguments)
        if piece.ending is not None:
            if self._current is None and not self.items:
                yield from self._open(Item("text"))
            yield from self._close()

    def _extend(self, kind: Kind, text: str) -> Iterator[ItemChange]:
        growing = self._current
        if growing is None or growing.item.kind != kind:
            yield from self._open(Item(kind))
            growing = self._current
        if growing is None:
            raise ValueError("no item is open")
        tokens: tuple[ScoredToken, ...] = ()
        if kind == "text":
            tokens = tuple(self._tokens)
            self._tokens.clear()
        growing.texts.append(text)
        growing.tokens += tokens
        yield Extended(len(self.items), kind, text, tokens)

    def _open(self, item: Item) -> Iterator[ItemChange]:
        yield from self._close()
        self._current = _Growing(item)
        yield Opened(len(self.items), item)

    def _close(self) -> Iterator[ItemChange]:
        if self._current is not None:
            item, self._current = self._current.whole(), None
            self.items.append(item)
            yield Closed(len(self.items) - 1, item)
