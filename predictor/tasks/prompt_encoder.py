"""Turns the prompts of text generation into tokens: bounded, cut and checked."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

from predictor.errors import PromptTooLong, RequestError
from predictor.tasks.large_texts import one_at_a_time
from predictor.tasks.prompt_cut import Cut
from predictor.tasks.text_length import lengths_of


class PromptEncoder:
    """Turns prompts into tokens, for one model."""

    def __init__(
        self, tokenizer: Any, *, max_model_len: int, vocabulary: int, is_continued: bool
    ) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: The model's tokenizer.
            max_model_len: Most tokens of prompt and reply together, or of a source.
            vocabulary: Number of token ids of the model.
            is_continued: Whether replies continue prompts, and share their places with them.
        """
        self._tokenizer = tokenizer
        self._longest, self._vocabulary = max_model_len, vocabulary
        self._is_continued = is_continued
        self._lengths = lengths_of(tokenizer)

    def encode(
        self, text: str | array[int], cut: Cut, *, mark: str = "", add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        """Return the tokens of a prompt; raises the errors of `tokens` and `checked`."""
        return self.checked(
            cut.apply(self.tokens(text, cut, mark=mark, add_special_tokens=add_special_tokens))
        )

    def tokens(
        self, text: str | array[int], cut: Cut, *, mark: str = "", add_special_tokens: bool = True
    ) -> Sequence[int]:
        """Return the tokens of a text, at least those that a cut keeps; tokens as they are.

        Args:
            text: The text.
            cut: How it is cut if it is too long.
            mark: A character of which what is before it and what is behind it share no token. It
                is no part of the text.
            add_special_tokens: Whether those that the tokenizer adds are added.

        Raises:
            PromptTooLong: The text is longer than any that the model takes, and is not cut.
        """
        if not isinstance(text, str):
            return text
        plain = text.replace(mark, "") if mark else text
        if cut.limit is None:
            self._lengths.check(self._longest, "A prompt", self._takes_at_most(), plain)
        kept = cut.shorten(plain, self._lengths)
        with one_at_a_time(kept):
            if not mark:
                return self._ids(kept, add_special_tokens=add_special_tokens)
            first, *others = _keep(text.split(mark), len(kept), from_end=cut.keeps_end)
            ids = self._ids(first, add_special_tokens=add_special_tokens)
            return [*ids, *chain.from_iterable(map(cache(self._ids_behind), others))]

    def _ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids
        return ids

    def _ids_behind(self, text: str) -> list[int]:
        """Return the tokens of a text that others come before: some begin texts with a space."""
        line, whole = self._ids("\n"), self._ids(f"\n{text}")
        return whole[len(line) :] if whole[: len(line)] == line else self._ids(text)

    def checked(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens of a prompt, which are one token at least.

        Raises:
            PromptTooLong: There are more than the model takes.
            RequestError: There is no token to begin with, or one is not in the vocabulary.
        """
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise RequestError("A prompt is empty, and this model has no token to begin with.")
        least = len(ids) + self._is_continued  # a token of a reply that continues it
        if least > self._longest:
            raise PromptTooLong(
                f"A prompt has {len(ids)} tokens; {self._takes_at_most()}",
                tokens=least,
                limit=self._longest,
            )
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise RequestError(f"A token id is not between 0 and {self._vocabulary - 1}.")
        return tuple(ids)

    def _takes_at_most(self) -> str:
        reply = "with a reply of at least one token " if self._is_continued else ""
        return f"{reply}this model takes at most {self._longest} (max_model_len)."


def _keep(parts: list[str], count: int, *, from_end: bool) -> list[str]:
    """Return the parts that have so many first or last characters of all, at least one part."""
    kept: list[str] = []
    for part in reversed(parts) if from_end else parts:
        kept.append(part[max(0, len(part) - count) :] if from_end else part[:count])
        count -= len(kept[-1])
        if count <= 0:
            break
    return kept[::-1] if from_end else kept
