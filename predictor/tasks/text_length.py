"""Whether a text is too long, told before it is tokenised whole: by its characters, or by pieces.

Tokenising a text of 1 MiB takes a second and a hundred bytes a token. A tokenizer whose every token
covers a bounded number of characters gives at least so many tokens for a text; if these are too
many, there is nothing to tokenise. That holds for byte-level BPE (GPT-2, BLOOM, Llama 3, Qwen) and
for BPE with byte fallback (Llama 2, Mistral, Gemma). Others drop characters, or make one token of
any unknown word (WordPiece, Unigram): for those a text is too long beyond a generous bound.

White space is not counted, because a tokenizer may drop it or put it into any token.

What is left of a large text is counted in pieces, which take little memory, until there are too
many tokens. So no call tokenises more than a prompt of the greatest length and a piece.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from predictor.errors import PromptTooLong
from predictor.tasks.large_texts import LARGE, pieces

CHARACTERS_PER_TOKEN = 256
"""Characters per token, white space aside, that a text of a tokenizer without a bound may have.
English has five, and no word of a natural language has so many."""

LARGE_PER_TOKEN = 32
"""Characters per token, white space among them, that a large text may have. A tokenizer takes some
150 bytes for each even if they are one token."""

_COMPOSED = 4
"""Characters of which Unicode's normal forms make one, at most (such as U+1FA7)."""

_WHITE_SPACE = tuple(char for char in map(chr, range(0x3001)) if char.isspace())
_PIECE = 16 * 1024
"""Characters that are counted at one time. Few pieces tell that a long text is too long."""

_BYTES = 256
_KEEPING = {
    "ByteLevel": 1,
    "Lowercase": 1,
    "Prepend": 1,
    "Metaspace": 1,
    "Digits": 1,
    "NFC": _COMPOSED,
    "NFD": _COMPOSED,
    "NFKC": _COMPOSED,
    "NFKD": _COMPOSED,
}
"""Steps before the model that keep every character, and of how many they may make one."""


@dataclass(frozen=True, slots=True)
class TextLengths:
    """The length of texts for one tokenizer.

    Attributes:
        per_token: Most characters of a token, white space aside.
        is_bound: Whether no token can have more.
        count: Returns the number of tokens of a text without special ones; None if nobody can.
    """

    per_token: int
    is_bound: bool
    count: Callable[[str], int] | None = field(default=None, compare=False, repr=False)

    def check(self, tokens: int, what: str, rest: str, *texts: str) -> None:
        """Return if texts may have so few tokens.

        Args:
            tokens: Most tokens.
            what: The beginning of the sentence of a refusal: ``"A text"``.
            rest: Its end.
            texts: The texts.

        Raises:
            PromptTooLong: They have more.
        """
        count = sum(map(len, texts))
        if self.exceed(tokens, *texts):
            more = "tokens" if self.is_bound else f"times {self.per_token}, and is not tokenised"
        elif count > _most_characters(tokens):
            more = f"times {LARGE_PER_TOKEN}, and is not tokenised"
        elif any(len(self.cut(text, tokens)) < len(text) for text in texts):
            more = "tokens"
        else:
            return
        raise PromptTooLong(
            f"{what} of {count} characters has more than {tokens} {more}; {rest}",
            tokens=tokens + 1,
            limit=tokens,
        )

    def cut(self, text: str, tokens: int, *, keeps_end: bool = False) -> str:
        """Return a part of a large text that has more than so many tokens; all, if it has not.

        A part has also ended if it has very many characters besides white space.

        Args:
            text: The text; one that is not large is returned as it is.
            tokens: The number of tokens to which it will be cut.
            keeps_end: Whether the part is its end, and not its beginning.

        Raises:
            PromptTooLong: So much of it is white space that these tokens may be anywhere.
        """
        if self.count is None or len(text) <= LARGE:
            return text
        most = _most_characters(tokens)
        length = total = blank = 0
        for piece in pieces(text, from_end=keeps_end):
            length += len(piece)
            total += self.count(piece) - 1  # it may begin with a token of its own
            blank += _blank(piece)
            if total > tokens or length - blank >= most:
                break
            if length >= most and length < len(text):
                raise PromptTooLong(
                    f"A text of {len(text)} characters has too much white space to be cut to "
                    f"{tokens} tokens.",
                    tokens=tokens + 1,
                    limit=tokens,
                )
        return text[len(text) - length :] if keeps_end else text[:length]

    def exceed(self, tokens: int, *texts: str) -> bool:
        """Return whether texts have more than some number of tokens, for certain or beyond reason.

        Args:
            tokens: The number of tokens.
            texts: The texts.
        """
        room = tokens * self.per_token
        if sum(map(len, texts)) <= room:
            return False
        for piece in _pieces(texts):
            room -= len(piece) - _blank(piece)
            if room < 0:
                return True
        return False


def _blank(text: str) -> int:
    """Return how many characters are white space."""
    return sum(map(text.count, _WHITE_SPACE))


def _most_characters(tokens: int) -> int:
    return max(LARGE, LARGE_PER_TOKEN * tokens)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    return (text[n : n + _PIECE] for text in texts for n in range(0, len(text), _PIECE))


UNBOUND = TextLengths(CHARACTERS_PER_TOKEN, is_bound=False)
"""The length of texts for a tokenizer that makes tokens of any length."""


def lengths_of(tokenizer: Any) -> TextLengths:
    """Return the length of texts for one of transformers' tokenizers."""
    return replace(_characters_of(tokenizer), count=partial(_count, tokenizer))


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _characters_of(tokenizer: Any) -> TextLengths:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _covers_all_bytes(backend.model, backend.get_vocab(False)):
        return UNBOUND
    steps = (*_steps(backend.normalizer), *_steps(backend.pre_tokenizer))
    composed = [1, *map(_composed, steps)]
    makes_bytes = any(step["type"] == "ByteLevel" for step in steps)
    if not (all(composed) and (makes_bytes or backend.model.byte_fallback)):
        return UNBOUND
    added = (token.content for token in backend.get_added_tokens_decoder().values())
    longest = max(map(len, (*backend.get_vocab(False), *added)))
    return TextLengths(longest * max(composed), is_bound=True)


def _covers_all_bytes(model: Any, vocabulary: Mapping[str, int]) -> bool:
    """Return whether a model makes tokens of any text, and drops or joins nothing unknown."""
    if type(model).__name__ != "BPE" or model.dropout:
        return False
    if model.byte_fallback:
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(_BYTES))
    return all(char in vocabulary for char in _byte_characters())


def _byte_characters() -> Iterator[str]:
    """Yield the characters by which byte-level BPE stands for bytes (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    yield from map(chr, shown)
    yield from (chr(0x100 + number) for number in range(_BYTES - len(shown)))


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer or a pre-tokenizer, of which there may be none."""
    if step is None:
        return
    state = json.loads(step.__getstate__())
    key = "normalizers" if "normalizers" in state else "pretokenizers"
    yield from state.get(key, [state])


def _composed(step: Mapping[str, Any]) -> int:
    """Return of how many characters a step may make one; 0 if it may drop any."""
    kind = step["type"]
    if kind == "Split":
        return int(step["behavior"] != "Removed")
    if kind == "Replace":
        pattern = step["pattern"].get("String", "")
        return int(0 < len(pattern) <= len(step["content"]))
    return _KEEPING.get(kind, 0)
