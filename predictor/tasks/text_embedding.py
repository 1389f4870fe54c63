"""Text embedding: a vector for each text, close to those of texts with a similar meaning.

Parameters: ``normalize`` (whether vectors have length 1; the model's layout sets the default),
``dimensions`` (fewer elements, for models trained for that), ``prompt_name`` (which of the model's
prompts is put before the text), and those that cut a text (`tokenization.CUT_CHECKS`).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from predictor.engine.encoding.inputs import EncoderInput
from predictor.errors import PromptTooLong, RequestError
from predictor.tasks.answers import Vector
from predictor.tasks.encoder_task import Array, EncoderTaskSpec
from predictor.tasks.model_facts import ModelFacts
from predictor.tasks.parameters import boolean, integer, one_of, parse_named
from predictor.tasks.request import TOKENS, EncoderInstance
from predictor.tasks.sentence_layout import SentenceLayout
from predictor.tasks.task import Field, Output
from predictor.tasks.tokenization import CUT_CHECKS, Tokenizing

_LEAST_NORM = 1e-12
"""The divisor of a vector without length, as in torch's ``normalize``."""


class TextEmbedding(EncoderTaskSpec):
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "text_embedding"
    fields = (Field("text", aliases=("prompt", "data", "input")),)

    def __init__(self, tokenizing: Tokenizing, facts: ModelFacts, layout: SentenceLayout) -> None:
        """Create the task.

        Args:
            tokenizing: The tokenizer.
            facts: The model's facts.
            layout: How a vector is made of the model's states.
        """
        self._tokenizing = tokenizing
        self._layout = layout
        self._sizes = facts.dimensions
        self._size = facts.dimensions[0]
        self._vocabulary = facts.vocabulary
        size = self._size if len(self._sizes) == 1 else -1
        self.outputs = (Output("embedding", "FP32", (-1, size)),)

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = {
            "normalize": boolean,
            **CUT_CHECKS,
            "dimensions": self._check_size,
            "prompt_name": one_of(tuple(self._layout.prompts)),
            TOKENS: _check_tokens,
        }
        defaults = {
            "normalize": self._layout.normalize,
            **self._tokenizing.cut_defaults,
            "dimensions": self._size,
            "prompt_name": self._layout.default_prompt,
            TOKENS: None,
        }
        parsed = parse_named(parameters, checks, defaults)
        if parsed[TOKENS] is not None:
            parsed[TOKENS] = self._tokens(parsed)
        return EncoderInstance(fields, parsed)

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the one text."""
        tokens = instance.parameters[TOKENS]
        if tokens is not None:
            return (EncoderInput(tokens),)
        text = self._text(instance)
        cut = self._tokenizing.cut_of(instance.parameters)
        return (self._tokenizing.text(text, cut=cut),)

    def tokenize_all(self, instances: Sequence[EncoderInstance]) -> list[tuple[EncoderInput, ...]]:
        """Return the one text of each instance."""
        parameters = [instance.parameters for instance in instances]
        cut_of = self._tokenizing.cut_of
        if any(cut_of(each) is not None or each[TOKENS] is not None for each in parameters):
            return super().tokenize_all(instances)
        texts = self._tokenizing.texts([self._text(instance) for instance in instances])
        return [(text,) for text in texts]

    def _text(self, instance: EncoderInstance) -> str:
        prompt = self._layout.prompts.get(instance.parameters["prompt_name"], "")
        text = prompt + instance.fields["text"]
        return text.lower() if self._layout.lower else text

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[Array],
    ) -> Vector:
        """Return the vector."""
        vector = results[0][: instance.parameters["dimensions"]]
        if instance.parameters["normalize"]:
            vector = vector / max(float(np.linalg.norm(vector)), _LEAST_NORM)
        values = vector.astype(np.float32, copy=False).tobytes()
        return Vector(array("f", values), len(texts[0].ids))

    def _check_size(self, name: str, value: Any) -> int:
        size = integer(name, value, 1, self._size)
        if size not in self._sizes:
            sizes = ", ".join(map(str, self._sizes[:8]))
            raise RequestError(f"{name} must be one that this model was made for: {sizes}.")
        return size

    def _tokens(self, parameters: Mapping[str, Any]) -> tuple[int, ...]:
        most = self._tokenizing.max_model_len
        value = parameters[TOKENS][: self._tokenizing.cut_of(parameters)]
        if len(value) > most:  # first: there may be hundreds of thousands
            raise PromptTooLong(
                f"A text has {len(value)} tokens; this model takes at most {most} (max_model_len).",
                tokens=len(value),
                limit=most,
            )
        return tuple(integer("A token id", token, 0, self._vocabulary - 1) for token in value)


def _check_tokens(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise RequestError(f"{name} must be a list of token ids.")
    if not value:
        raise RequestError("A list of tokens is empty.")
    return value
