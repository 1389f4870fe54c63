"""Turns of a conversation, for APIs that have reasoning, texts and calls as items of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from predictor.tasks.request import Message


@dataclass(slots=True)
class _Turn:
    """A turn that more may be added to."""

    role: str
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def message(self) -> Message:
        extra = dict(self.extra)
        if self.reasoning:
            extra["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            extra["tool_calls"] = self.calls
        return Message(self.role, "\n\n".join(self.texts), extra)


class Turns:
    """Puts a conversation together, item by item.

    What an assistant thinks, writes and calls in a row is one message, in this order. Leading
    messages of the system are one: many chat templates refuse a second one.
    """

    def __init__(self) -> None:
        """Begin with no message."""
        self._turns: list[_Turn] = []
        self._functions: dict[str, str] = {}

    def messages(self) -> tuple[Message, ...]:
        """Return the messages."""
        return tuple(turn.message() for turn in self._turns)

    def add(self, role: str, text: str) -> None:
        """Add a message of any role but ``tool``."""
        if role == "assistant":
            self._assistant(is_text=True).texts.append(text)
        elif role == "system" and len(self._turns) == 1 and self._turns[0].role == "system":
            self._turns[0].texts.append(text)
        else:
            self._turns.append(_Turn(role, [text]))

    def add_reasoning(self, text: str) -> None:
        """Add what an assistant thinks before it goes on."""
        self._assistant(is_text=True).reasoning.append(text)

    def add_call(self, call: Mapping[str, Any]) -> None:
        """Add an assistant's call of a function, as `messages.template_call` returns it."""
        if "id" in call:
            self._functions[call["id"]] = call["function"]["name"]
        self._assistant().calls.append(call)

    def add_output(self, identity: str, text: str) -> None:
        """Add what the call of this id has returned; templates may want the function's name."""
        function = self._functions.get(identity)
        named = {} if function is None else {"name": function}
        self._turns.append(_Turn("tool", [text], extra={"tool_call_id": identity, **named}))

    def _assistant(self, *, is_text: bool = False) -> _Turn:
        """Return the assistant's turn to add to: no text follows a text or a call."""
        last = self._turns[-1] if self._turns else None
        if last is None or last.role != "assistant" or (is_text and (last.texts or last.calls)):
            last = _Turn("assistant")
            self._turns.append(last)
        return last
