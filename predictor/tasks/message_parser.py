"""Turns the text of a reply into the parts of a message, as it comes.

transformers' response parser finds where reasoning and calls begin and end. What it cannot parse
stays content: a reply is never lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from predictor.tasks.call_text import CallText
from predictor.tasks.reply_text import ReplyText
from predictor.tasks.tool_calls import (
    CallPart,
    MessagePart,
    as_json,
    name_and_arguments,
    new_call,
)

logger = logging.getLogger(__name__)

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of the field of reasoning in response templates (``chat_template_utils.py``)."""


class MessageParser(Protocol):
    """Takes the text of one reply and gives the parts of the message."""

    def feed(self, text: str, *, is_last: bool) -> MessagePart:
        """Take the next characters of the reply, and return what they make certain."""
        ...


class TemplateParser:
    """Parses by a response template."""

    def __init__(
        self,
        tokenizer: Any,
        template: Mapping[str, Any],
        *,
        prefix: str,
        tools: Sequence[Mapping[str, Any]],
        is_single: bool,
    ) -> None:
        """Begin a reply.

        Args:
            tokenizer: The model's tokenizer.
            template: The response template.
            prefix: What the prompt has of the reply already.
            tools: The functions that the reply may call, for the types of their arguments.
            is_single: Whether only the first call is passed on.
        """
        self._parser = tokenizer.get_response_parser(dict(template), prefix=prefix, tools=[*tools])
        self._is_single = is_single
        self._names = frozenset(tool["function"]["name"] for tool in tools)
        self._reply = ReplyText(template)
        self._calls = 0
        self._is_call_open = False
        self._call_text = CallText(0, self._names)
        self._is_whole_call = _has_whole_calls(template)
        self._is_broken = False
        self._content, self._reasoning = _Text(), _Text()
        self._reasoning.pass_mark()
        if self._parser.initial_events:
            self._content.pass_mark()

    def feed(self, text: str, *, is_last: bool) -> MessagePart:
        """Take the next characters of the reply, and return what they make certain."""
        if self._is_broken:
            return MessagePart(text)
        self._reply.feed(text)
        try:
            events = self._parser.feed(text)
            if is_last:
                events += self._parser.finalize()[1]
        # A template's expressions and conversions fail in any way on what a model writes.
        except Exception as error:
            logger.info("A reply cannot be parsed, and stays text: %s", type(error).__name__)
            self._is_broken = True
            return MessagePart(self._content.flush() + self._reply.since(self._unwritten()))
        return self._part(events, is_last=is_last)

    def _part(self, events: Sequence[Mapping[str, Any]], *, is_last: bool) -> MessagePart:
        content, reasoning = "", ""
        calls: list[CallPart] = []
        for event in events:
            self._reply.pass_event(event)
            name, sort = event["field"], event["type"]
            if name == "tool_calls":
                content += self._add_calls(event, calls)
            elif name != "content" and sort == "region_open":
                self._content.pass_mark()
            elif name in _REASONING and sort == "region_close":
                self._reasoning.pass_mark()
            elif name in _REASONING and sort == "region_chunk":
                reasoning += self._reasoning.add(event["text"])
            elif name == "content" and sort == "region_chunk":
                content += self._content.add(event["text"])
        if is_last:
            content += self._content.flush()
        return MessagePart(content, reasoning, tuple(calls))

    def _add_calls(self, event: Mapping[str, Any], calls: list[CallPart]) -> str:
        """Add the calls of an event of a region of calls; return what is content in it."""
        self._is_call_open = event["type"] != "region_close"
        if not self._is_call_open:
            return self._close_calls(event["value"], calls)
        if event["type"] == "region_open":
            self._call_text = CallText(self._calls, self._names)
        elif self._is_whole_call:
            calls += filter(self._is_wanted, self._call_text.feed(event["text"]))
        return ""

    def _close_calls(self, value: Any, calls: list[CallPart]) -> str:
        """Add the calls of a region that were not written yet; return all else as content."""
        written, before = self._call_text.calls, self._calls
        self._calls += written
        others = []
        for each in (value if isinstance(value, list) else [value])[written:]:
            call = name_and_arguments(each)
            if call is None or call[0] not in self._names:
                others.append(each)
                continue
            calls += filter(self._is_wanted, [new_call(self._calls, *call)])
            self._calls += 1
        if self._calls == before:
            return self._content.add(self._reply.region())
        self._content.pass_mark()
        rest = self._call_text.rest() if isinstance(value, str) else _as_lines(others)
        return self._content.add(rest)

    def _is_wanted(self, part: CallPart) -> bool:
        return not (self._is_single and part.index)

    def _unwritten(self) -> int:
        """Return from where on the reply is in no part of the message."""
        is_held = self._is_call_open and not self._call_text.calls
        return self._reply.start if is_held else self._reply.end


def _as_lines(values: Sequence[Any]) -> str:
    return "\n".join(map(as_json, values))


def _has_whole_calls(template: Mapping[str, Any]) -> bool:
    """Return whether calls are JSON with the name in it, and not the arguments alone."""
    calls = template["fields"].get("tool_calls", {})
    return calls.get("content") == "json" and "(?P<" not in calls.get("open_pattern", "")


class _Text:
    """Text of one kind, without the spaces beside the marks of other kinds."""

    def __init__(self) -> None:
        self._held = ""
        self._is_after_mark = False

    def add(self, text: str) -> str:
        """Return the next text that is certain; spaces at its end wait for what follows."""
        held = self._held + text
        if self._is_after_mark:
            held = held.lstrip()
        body = held.rstrip()
        self._is_after_mark &= not body
        self._held = held[len(body) :]
        return body

    def pass_mark(self) -> None:
        """Drop the spaces before a mark, and those that follow it."""
        self._held, self._is_after_mark = "", True

    def flush(self) -> str:
        """Return the spaces at the end of a reply."""
        held, self._held = self._held, ""
        return held


class ChainedParser:
    """Reads reasoning out of a reply first, and calls out of the content that is left."""

    def __init__(
        self, outer: Callable[[], MessageParser], inner: Callable[[], MessageParser]
    ) -> None:
        """Begin a reply.

        Args:
            outer: Begins the parser that takes the reply.
            inner: Begins the parser that takes its content.
        """
        self._outer, self._inner = outer(), inner()

    def feed(self, text: str, *, is_last: bool) -> MessagePart:
        """Take the next characters of the reply, and return what they make certain."""
        part = self._outer.feed(text, is_last=is_last)
        rest = self._inner.feed(part.content, is_last=is_last)
        return MessagePart(rest.content, part.reasoning, rest.calls)


class NamedCallParser:
    """Passes all text on as the arguments of one function, which a grammar has the reply be."""

    def __init__(self, name: str) -> None:
        """Begin a reply that calls a function of this name."""
        self._name: str | None = name

    def feed(self, text: str, *, is_last: bool) -> MessagePart:
        """Take the next characters of the reply, and return what they make certain."""
        if self._name is None:
            return MessagePart(calls=(CallPart(0, text),)) if text else MessagePart()
        if not text and not is_last:
            return MessagePart()
        call, self._name = new_call(0, self._name, text), None
        return MessagePart(calls=(call,))


class CallListParser:
    """Takes a list of calls in JSON, which a grammar has the reply be.

    A reply that is cut within a call has the arguments that were written, as of a named function.
    """

    def __init__(self, names: Collection[str]) -> None:
        """Begin a reply.

        Args:
            names: The functions that may be called.
        """
        self._calls = CallText(0, names)

    def feed(self, text: str, *, is_last: bool) -> MessagePart:
        """Take the next characters of the reply, and return what they make certain."""
        calls = tuple(self._calls.feed(text))
        return MessagePart(self._calls.rest() if is_last else "", calls=calls)
