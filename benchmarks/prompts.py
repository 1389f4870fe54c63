"""Prompts of random words."""

from __future__ import annotations

import random
import re
from pathlib import Path

from load import Prompt
from tokenizers import Tokenizer


class Prompts:
    """Random prompts of words in a model's vocabulary, the same ones in every run."""

    def __init__(self, model: Path, tokens: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        vocabulary = sorted(self._tokenizer.get_vocab())
        marked = [word[1:] for word in vocabulary if re.fullmatch(r"\u0120[a-z]+", word)]
        self._words = marked or [word for word in vocabulary if word.isalnum()]
        self._tokens = tokens

    def take(self, count: int, *, seed: int, tokens: int | None = None) -> list[Prompt]:
        """Return prompts with their numbers of tokens, which may differ from the words'."""
        chosen = random.Random(seed)
        return [self._one(chosen, tokens or self._tokens) for _ in range(count)]

    def ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's tokens."""
        ids: list[int] = self._tokenizer.encode(prompt.text).ids
        return ids

    def _one(self, chosen: random.Random, tokens: int) -> Prompt:
        text = " ".join(chosen.choices(self._words, k=tokens))
        return Prompt(text, len(self._tokenizer.encode(text).ids))
