"""Texts become tokens for a model that reads: checked, and cut only where that was asked for."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from predictor.engine.encoding.inputs import Text
from predictor.errors import PromptTooLong, RequestError


class Tokenizing:
    """A tokenizer and what its model takes.

    Attributes:
        tokenizer: The tokenizer.
        max_model_len: Most tokens of a text, special ones among them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Puts the parts together."""
        self.tokenizer: Any = tokenizer
        self.max_model_len = max_model_len

    def text(self, text: str, pair: str | None = None, *, truncate: bool = False) -> Text:
        """Returns a text, or a pair of texts, as the model reads it.

        Args:
            text: The text.
            pair: The second text of a pair.
            truncate: Whether what is too long is cut.

        Raises:
            PromptTooLong: It is longer than the model takes, and not to be cut.
            RequestError: It has no token at all.
        """
        return as_text(self.encode(text, pair, truncate=truncate))

    def encode(
        self, text: str, pair: str | None = None, *, truncate: bool = False, **also: Any
    ) -> Any:
        """Returns what the tokenizer makes of a text or a pair; raises what `text` raises.

        Args:
            text: The text.
            pair: The second text of a pair.
            truncate: Whether what is too long is cut.
            also: What else the tokenizer is asked for.
        """
        cut = {"truncation": True, "max_length": self.max_model_len} if truncate else {}
        found = self.tokenizer(text, pair, verbose=False, **cut, **also)
        count = len(found["input_ids"])
        if not count:
            raise RequestError("A text is empty, and this model has no token to begin with.")
        if count > self.max_model_len:
            raise PromptTooLong(
                f"A text has {count} tokens; this model takes at most {self.max_model_len} "
                "(max_model_len), and cuts what is longer where truncate is true.",
                tokens=count,
                limit=self.max_model_len,
            )
        return found


def as_text(encoding: Any, about: Any = None) -> Text:
    """Returns what a tokenizer made of one text, as the model reads it.

    Args:
        encoding: The tokenizer's, of one text or pair.
        about: What the task remembers of it.
    """
    types = encoding.get("token_type_ids")
    return Text(tuple(encoding["input_ids"]), None if types is None else tuple(types), about)
