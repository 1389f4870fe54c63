"""Text embedding: a vector for each text, near those of texts that mean the like.

V1: ``{"instances": ["a text"]}`` answers ``{"predictions": [[0.1, ...]]}``. Parameters:
``normalize`` (whether vectors have length 1; by default what the model's layout says),
``dimensions`` (fewer numbers, for models made for it), ``prompt_name`` (which of the model's
prompts is put before the text), ``truncate``.

V2: a BYTES input ``text`` of n elements; output ``embedding`` FP32 [n, dimensions].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from predictor.engine.encoding.inputs import Batch, Text
from predictor.errors import PromptTooLong, RequestError
from predictor.tasks.encoder_spec import Ask, Column, Field, Output
from predictor.tasks.parameters import boolean, integer, one_of, parse_named
from predictor.tasks.sentence_layout import SentenceLayout
from predictor.tasks.tokenization import Tokenizing

TOKENS = "tokens"
"""The parameter that holds a text's tokens, where a protocol gives them instead of a text."""


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector of a text.

    Attributes:
        values: Its numbers.
        tokens: Tokens of the text.
    """

    values: list[float]
    tokens: int


class TextEmbedding:
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "text_embedding"
    fields = (Field("text", aliases=("prompt", "data", "input")),)

    def __init__(
        self, tokenizing: Tokenizing, config: PreTrainedConfig, layout: SentenceLayout
    ) -> None:
        """Puts the parts together.

        Args:
            tokenizing: Makes tokens.
            config: The model's.
            layout: How vectors are made.
        """
        self._tokenizing = tokenizing
        self._layout = layout
        text: Any = config.get_text_config()
        self._size = int(text.hidden_size)
        self._vocabulary = int(text.vocab_size)
        self._sizes = _sizes(config, self._size)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All that V2 may answer with."""
        size = self._size if len(self._sizes) == 1 else -1
        return (Output("embedding", "FP32", (-1, size)),)

    def decode(self, fields: Mapping[str, str], parameters: Mapping[str, object]) -> Ask:
        """Returns what is asked."""
        checks = {
            "normalize": boolean,
            "truncate": boolean,
            "dimensions": self._check_size,
            "prompt_name": one_of(tuple(self._layout.prompts)),
            TOKENS: self._check_tokens,
        }
        unsaid = {
            "normalize": self._layout.normalize,
            "truncate": False,
            "dimensions": self._size,
            "prompt_name": self._layout.default_prompt,
            TOKENS: None,
        }
        return Ask(fields, parse_named(parameters, checks, unsaid))

    def tokenize(self, ask: Ask) -> tuple[Text, ...]:
        """Returns the one text."""
        tokens = ask.parameters[TOKENS]
        if tokens is not None:
            return (Text(tokens),)
        prompt = self._layout.prompts.get(ask.parameters["prompt_name"], "")
        text = prompt + ask.fields["text"]
        if self._layout.lower:
            text = text.lower()
        return (self._tokenizing.text(text, truncate=ask.parameters["truncate"]),)

    def run(self, output: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Returns each row's vector, of shape (hidden,), in float32."""
        pooled = pool(output.last_hidden_state, batch.mask, self._layout.pooling)
        return list(pooled.float().cpu())

    def encode(self, ask: Ask, texts: Sequence[Text], found: Sequence[torch.Tensor]) -> Vector:
        """Returns the vector."""
        vector = found[0][: ask.parameters["dimensions"]]
        if ask.parameters["normalize"]:
            vector = torch.nn.functional.normalize(vector, dim=0)
        return Vector(vector.tolist(), len(texts[0].ids))

    def prediction(self, answer: Vector) -> object:
        """Returns an answer as a JSON value."""
        return answer.values

    def columns(self, answers: Sequence[Vector]) -> tuple[Column, ...]:
        """Returns answers as tensors; in one call all have as many dimensions."""
        shape = (len(answers), len(answers[0].values))
        data = [value for answer in answers for value in answer.values]
        return (Column("embedding", "FP32", shape, data),)

    def _check_size(self, name: str, value: Any) -> int:
        size = integer(name, value, 1, self._size)
        if size not in self._sizes:
            known = ", ".join(map(str, self._sizes[:8]))
            raise RequestError(f"{name} must be one that this model was made for: {known}.")
        return size

    def _check_tokens(self, name: str, value: Any) -> tuple[int, ...]:
        tokens = tuple(integer("A token id", token, 0, self._vocabulary - 1) for token in value)
        most = self._tokenizing.max_model_len
        if not tokens:
            raise RequestError("A list of tokens is empty.")
        if len(tokens) > most:
            raise PromptTooLong(
                f"A text has {len(tokens)} tokens; this model takes at most {most} "
                "(max_model_len).",
                tokens=len(tokens),
                limit=most,
            )
        return tokens


def pool(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """Returns one vector for each row, of shape (rows, hidden), as sentence-transformers has it.

    Args:
        states: The model's last states, of shape (rows, length, hidden).
        mask: 1 where a row has a token, of shape (rows, length); padding is on the right.
        mode: One of `SentenceLayout.pooling`.
    """
    mask = mask.to(states.device)
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    weights = mask[:, :, None].to(torch.float32)
    if mode == "max":
        return states.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    if mode == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, device=states.device)[None, :, None]
    total = weights.sum(dim=1)
    summed = (states.float() * weights).sum(dim=1)
    return summed / (total.sqrt() if mode == "mean_sqrt_len" else total)


def _sizes(config: PreTrainedConfig, size: int) -> tuple[int, ...]:
    """The numbers of dimensions that a model was made for, the full one first.

    The config's keys are those that vLLM reads: ``matryoshka_dimensions``, ``is_matryoshka``.
    """
    named = getattr(config, "matryoshka_dimensions", None)
    if isinstance(named, (list, tuple)):
        return (size, *(int(value) for value in named if 0 < int(value) < size))
    if getattr(config, "is_matryoshka", False):
        return (size, *range(size - 1, 0, -1))
    return (size,)
