"""Turns texts into token ids and back, for clients that count tokens or look at them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from predictor.admission import AdmissionController
from predictor.errors import RequestError
from predictor.tasks.large_texts import LARGE, one_at_a_time
from predictor.tasks.request import Conversation
from predictor.tasks.text_length import UNBOUND, TextLengths


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of a model's texts.

    Attributes:
        tokenizer: The model's tokenizer.
        max_model_len: Most tokens that the model takes.
        vocabulary: Number of token ids.
        chat: Returns the token ids of a conversation; None for a model that has none.
        lengths: The length of texts for the tokenizer.
        admission: Counts what is in flight; None for no bound.
        truncates: Whether an encoder's texts are cut unless a request says otherwise.
    """

    tokenizer: Any
    max_model_len: int
    vocabulary: int
    chat: Callable[[Conversation], Sequence[int]] | None = None
    lengths: TextLengths = UNBOUND
    admission: AdmissionController | None = None
    truncates: bool = False

    @contextlib.contextmanager
    def admitted(self, size: int) -> Iterator[None]:
        """Count a request among those in flight; the event loop's thread calls it.

        Args:
            size: Bytes of its body, each of which may be a token.

        Raises:
            Overloaded: Too many sequences or tokens are in flight.
        """
        if self.admission is None:
            yield
            return
        permit = self.admission.enter(1, size)
        try:
            yield
        finally:
            permit.release()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, of which there may be more than the model takes.

        Raises:
            PromptTooLong: The text is large, and has more tokens than the model takes.
        """
        if len(text) > LARGE:
            rest = f"this model takes at most {self.max_model_len} (max_model_len)."
            self.lengths.check(self.max_model_len, "A text", rest, text)
        with one_at_a_time(text):
            encoding = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        ids: list[int] = encoding["input_ids"]
        return ids

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """Return the token ids of a conversation, by the model's chat template.

        Raises:
            RequestError: The model generates no text, or its template refuses the conversation.
        """
        if self.chat is None:
            raise RequestError("This model has no conversations; give a prompt.")
        return list(self.chat(conversation))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included.

        Raises:
            RequestError: An id is not in the vocabulary.
        """
        if not all(0 <= token < self.vocabulary for token in ids):
            raise RequestError(f"A token id is not between 0 and {self.vocabulary - 1}.")
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of ids as the vocabulary writes them."""
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        return ["" if name is None else str(name) for name in names]
