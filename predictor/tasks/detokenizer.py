"""Turns tokens into text as they come: whole characters only, and cut at a stop sequence.

A tokenizer decodes a token differently beside others (spaces, characters of several tokens), so new
text is the difference of two decodings that begin a few tokens earlier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

_CONTEXT_TOKENS = 8
"""Prompt tokens that a reply is decoded with: tokenizers drop a space at the beginning."""

_MOST_HELD = 16
"""Most tokens that are held back until a character is complete; a longer run is no character."""

_FIRST_MARK = 0xD800
_NO_TOKENS: Mapping[str, int] = MappingProxyType({})

_INCOMPLETE = "\ufffd"
_MOST_INCOMPLETE = 3
"""Most bytes of a character that lacks one; some decoders show each as U+FFFD."""


_REPLACEMENTS = (_INCOMPLETE, "\u00ef\u00bf\u00bd", "<0xEF><0xBF><0xBD>")
"""U+FFFD itself in the tokens of a vocabulary: as a character, as the three bytes in the alphabet
of byte-level tokenizers, and as SentencePiece's byte tokens."""


class TextStream:
    """The text of one reply.

    Attributes:
        text: Its final part so far.
        stop: The stop sequence that has ended it, before which the text ends; empty if none has.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        kept: Collection[int] = (),
        stop_tokens: Mapping[str, int] = _NO_TOKENS,
    ) -> None:
        """Create the text of a reply.

        Args:
            tokenizer: A transformers tokenizer.
            prompt: Tokens of the prompt.
            stops: Strings before which the reply ends.
            kept: Special tokens that are part of the text; others are left out.
            stop_tokens: Special tokens that `stops` contain, with their ids. They are looked for
                beside the text that they are no part of.
        """
        self._tokenizer = tokenizer
        self._dropped = frozenset(tokenizer.all_special_ids).difference(kept) if kept else None
        marks = _marks(text for text, each in stop_tokens.items() if each not in kept)
        self._marks = {stop_tokens[text]: mark for text, mark in marks.items()}
        self._no_marks = dict.fromkeys(map(ord, marks.values()))
        self._stops = {stop: stop for stop in stops} | {
            _marked(stop, marks): stop for stop in stops
        }
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._begin = 0
        self._read = len(self._ids)
        self._before = self._decode(self._ids)
        self._held = ""
        self.text = ""
        self.stop = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence has ended it."""
        return bool(self.stop)

    def take(self, token: int) -> None:
        """Add the next token; its text comes with the next call of another method."""
        self._ids.append(token)

    def push(self, token: int) -> str:
        """Add the next token and return the text that became final."""
        self.take(token)
        return self._settle(self._fresh(is_last=False) + self._marks.get(token, ""))

    def finish(self) -> str:
        """Return the text that was held back; no token follows.

        A character that lacks bytes is left out. A U+FFFD that was generated stays.
        """
        if self.stopped:
            return ""
        released = self._settle(self._fresh(is_last=True))
        held, self._held = self._held.translate(self._no_marks), ""
        self.text += held
        return released + held

    def _fresh(self, *, is_last: bool) -> str:
        """Return the new text since the last call, once its last character is complete."""
        ids = self._ids[self._begin :]
        after = self._decode(ids)
        half = self._half(after, ids)
        if is_last:
            after = self._without_half(after, ids, half)
        elif half and len(self._ids) - self._read <= _MOST_HELD:
            return ""
        # The earlier text may end in half a character that is complete now, so it may be no prefix.
        fresh = after[_alike(self._before, after) :]
        if fresh:
            self._begin, self._read = self._read, len(self._ids)
            self._before = self._decode(self._ids[self._begin :])
        return fresh

    def _without_half(self, text: str, ids: Sequence[int], half: int) -> str:
        """Return the last text without a character at its end that lacks bytes.

        Some decoders show all characters of a run of bytes as U+FFFD then. Those that were whole
        come back without the tokens of the bytes that lack others.
        """
        whole = text[: max(len(text) - half, len(self._before))]
        if not half or whole.startswith(self._before):
            return whole
        for end in range(len(ids) - 1, max(len(ids) - _MOST_INCOMPLETE, 0) - 1, -1):
            shorter = self._decode(ids[:end])
            if not self._half(shorter, ids[:end]):
                return max(shorter, self._before, key=len)
        return whole

    def _half(self, text: str, last: Sequence[int]) -> int:
        """Return how many U+FFFD at the end of a text stand for bytes that lack others.

        Args:
            text: The text.
            last: Its tokens.
        """
        shown = _incomplete(text)
        if not shown:
            return 0
        special = self._tokenizer.all_special_ids if self._dropped is None else self._dropped
        ids = [token for token in last if token not in special]
        tokens = [token or "" for token in self._tokenizer.convert_ids_to_tokens(ids)]
        for lacking in range(min(_MOST_INCOMPLETE, len(ids)) + 1):
            end = len(ids) - lacking
            if "".join(tokens[:end]).endswith(_REPLACEMENTS):
                return max(shown - _incomplete(self._decode(ids[:end])), 0)
        return min(shown, _MOST_INCOMPLETE)

    def _settle(self, fresh: str) -> str:
        """Cut at a stop sequence, and hold back text that may begin one."""
        self._held += fresh
        matches = [
            (at, stop)
            for written, stop in self._stops.items()
            if (at := self._held.find(written)) >= 0
        ]
        if matches:
            at, self.stop = min(matches)
            final, self._held = self._held[:at], ""
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            cut = len(self._held) - keep
            final, self._held = self._held[:cut], self._held[cut:]
        final = final.translate(self._no_marks) if self._no_marks else final
        self.text += final
        return final

    def _decode(self, ids: Sequence[int]) -> str:
        dropped = self._dropped
        text: str = self._tokenizer.decode(
            [token for token in ids if token not in dropped] if dropped is not None else list(ids),
            skip_special_tokens=dropped is None,
            clean_up_tokenization_spaces=False,
        )
        return text


def _marks(tokens: Iterable[str]) -> dict[str, str]:
    """Return a character for each special token that no text has: half of a surrogate pair."""
    return {token: chr(_FIRST_MARK + number) for number, token in enumerate(tokens)}


def _marked(stop: str, marks: Mapping[str, str]) -> str:
    """Return a stop sequence with the characters of the special tokens in it."""
    for token in sorted(marks, key=len, reverse=True):
        stop = stop.replace(token, marks[token])
    return stop


def _incomplete(text: str) -> int:
    """Return how many U+FFFD are at the end of a text."""
    return len(text) - len(text.rstrip(_INCOMPLETE))


def _alike(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    differences = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differences, min(len(one), len(other)))


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop sequence."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
