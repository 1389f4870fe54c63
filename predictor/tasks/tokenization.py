"""Turns texts into tokens for encoder tasks: checked, and cut only if the request says so."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from predictor.engine.encoding.inputs import EncoderInput
from predictor.errors import PromptTooLong, RequestError
from predictor.tasks.large_texts import batches, one_at_a_time
from predictor.tasks.parameters import Check, boolean, integer
from predictor.tasks.text_length import lengths_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _cut(name: str, value: Any) -> int:
    return -1 if value == -1 else integer(name, value, 1, 2**31 - 1)


CUT_CHECKS: Mapping[str, Check] = {"truncate": boolean, "truncate_prompt_tokens": _cut}
"""The parameters that cut texts, of every task that takes whole texts."""


class Tokenizing:
    """A tokenizer and the limit of its model.

    Attributes:
        tokenizer: The tokenizer; to cut texts, take one from `truncating`.
        max_model_len: Most tokens of a text, special ones among them.
        cut_defaults: The values of `CUT_CHECKS` where a request has none.
        lengths: The length of texts for the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_model_len: int,
        *,
        truncates: bool = False,
        add_special_tokens: bool = True,
    ) -> None:
        """Create it.

        Args:
            tokenizer: The tokenizer.
            max_model_len: Most tokens of a text.
            truncates: Whether a text that is too long is cut unless a request says otherwise.
            add_special_tokens: Whether texts get the tokenizer's special tokens.
        """
        self.tokenizer: Any = tokenizer
        self.max_model_len = max_model_len
        self.cut_defaults = {"truncate": truncates, "truncate_prompt_tokens": None}
        self.lengths = lengths_of(tokenizer)
        self._options = {"verbose": False, "add_special_tokens": add_special_tokens}
        self._copies: list[Any] = []

    def cut_of(self, parameters: Mapping[str, Any]) -> int | None:
        """Return the tokens to which a longer text is cut; None if it is refused.

        Args:
            parameters: Checked parameters, those of `CUT_CHECKS` among them.
        """
        limit = parameters["truncate_prompt_tokens"]
        if limit is None:
            return self.max_model_len if parameters["truncate"] else None
        return self.max_model_len if limit == -1 else min(limit, self.max_model_len)

    def text(self, text: str, pair: str | None = None, *, cut: int | None = None) -> EncoderInput:
        """Return a text, or a pair of texts, as tokens.

        Args:
            text: The text.
            pair: The second text of a pair.
            cut: Tokens to which a longer text is cut; None refuses one that is too long.

        Raises:
            PromptTooLong: It is longer than the model takes, and `cut` is None.
            RequestError: It has no token at all.
        """
        return as_text(self.encode(text, pair, cut=cut))

    def texts(self, texts: Sequence[str]) -> list[EncoderInput]:
        """Return texts as tokens, several in a call; raises the errors of `text`."""
        for text in texts:
            self.lengths.check(self.max_model_len, "A text", self._takes_at_most(), text)
        inputs: list[EncoderInput] = []
        for batch in batches(texts):
            with one_at_a_time(*batch):
                encoding = self.tokenizer(batch, **self._options)
            for index in range(len(batch)):
                one = {name: rows[index] for name, rows in encoding.items()}
                self._check_count(len(one["input_ids"]))
                inputs.append(as_text(one))
        return inputs

    def encode(
        self, text: str, pair: str | None = None, *, cut: int | None = None, **options: Any
    ) -> Any:
        """Return the tokenizer's encoding of a text or a pair; raises the errors of `text`.

        Args:
            text: The text.
            pair: The second text of a pair.
            cut: Tokens to which a longer text is cut.
            options: More arguments for the tokenizer.
        """
        texts = (text,) if pair is None else (text, pair)
        if cut is None:
            self.lengths.check(self.max_model_len, "A text", self._takes_at_most(), *texts)
        with one_at_a_time(*texts):
            encoding = self._encode(text, pair, cut, options)
        self._check_count(len(encoding["input_ids"]))
        return encoding

    def _check_count(self, count: int) -> None:
        if not count:
            raise RequestError("A text is empty, and this model has no token to begin with.")
        if count > self.max_model_len:
            raise PromptTooLong(
                f"A text has {count} tokens; {self._takes_at_most()}",
                tokens=count,
                limit=self.max_model_len,
            )

    @contextlib.contextmanager
    def truncating(self) -> Iterator[Any]:
        """Lend a tokenizer that no other thread uses meanwhile, for calls that cut texts.

        A fast tokenizer keeps the last call's truncation, and threads that share one cut each
        other's texts. Copies are made as they are needed, so there are no more than threads that
        cut texts at one time.
        """
        try:
            tokenizer = self._copies.pop()
        except IndexError:
            tokenizer = copy.deepcopy(self.tokenizer) if self.tokenizer.is_fast else self.tokenizer
        try:
            yield tokenizer
        finally:
            self._copies.append(tokenizer)

    def _encode(self, text: str, pair: str | None, cut: int | None, options: dict[str, Any]) -> Any:
        if cut is None:
            return self.tokenizer(text, pair, **self._options, **options)
        with self.truncating() as tokenizer:
            keeps_end = tokenizer.truncation_side == "left"
            texts = [text] if pair is None else [text, pair]
            parts = [self.lengths.cut(one, cut, keeps_end=keeps_end) for one in texts]
            options |= {"truncation": True, "max_length": cut, **self._options}
            encoding = tokenizer(*parts, **options)
        if keeps_end and "offset_mapping" in encoding:
            _shift(encoding, [len(a) - len(b) for a, b in zip(texts, parts, strict=True)])
        return encoding

    def _takes_at_most(self) -> str:
        return (
            f"this model takes at most {self.max_model_len} (max_model_len), and cuts what is "
            "longer where truncate is true."
        )


def _shift(encoding: Any, lost: Sequence[int]) -> None:
    """Count the offsets of tokens from the beginnings of texts that have lost some characters."""
    if any(lost):
        encoding["offset_mapping"] = [
            (start, end) if text is None else (start + lost[text], end + lost[text])
            for text, (start, end) in zip(
                encoding.sequence_ids(), encoding["offset_mapping"], strict=True
            )
        ]


def as_text(encoding: Any, about: Any = None) -> EncoderInput:
    """Return a tokenizer's encoding as an input of the engine.

    Args:
        encoding: The tokenizer's encoding of one text or pair.
        about: Anything that the task needs later, to make the answer.
    """
    types = encoding.get("token_type_ids")
    return EncoderInput(
        tuple(encoding["input_ids"]), None if types is None else tuple(types), about=about
    )
