"""Text embedding: a vector for each text, close to those of texts with a similar meaning.

Parameters: ``normalize`` (whether vectors have length 1; the model's layout sets the default),
``dimensions`` (fewer elements, for models trained for that), ``prompt_name`` (which of the model's
prompts is put before the text), ``truncate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from predictor.engine.encoding.inputs import EncoderBatch, EncoderInput
from predictor.errors import PromptTooLong, RequestError
from predictor.tasks.answers import Vector
from predictor.tasks.encoder_task import EncoderTaskSpec
from predictor.tasks.parameters import boolean, integer, one_of, parse_named
from predictor.tasks.request import TOKENS, EncoderInstance
from predictor.tasks.sentence_layout import SentenceLayout
from predictor.tasks.task import Field, Output
from predictor.tasks.tokenization import Tokenizing


class TextEmbedding(EncoderTaskSpec):
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "text_embedding"
    fields = (Field("text", aliases=("prompt", "data", "input")),)

    def __init__(
        self, tokenizing: Tokenizing, config: PreTrainedConfig, layout: SentenceLayout
    ) -> None:
        """Create the task.

        Args:
            tokenizing: The tokenizer.
            config: The model's config.
            layout: How a vector is made of the model's states.
        """
        self._tokenizing = tokenizing
        self._layout = layout
        text: Any = config.get_text_config()
        self._size = int(text.hidden_size)
        self._vocabulary = int(text.vocab_size)
        self._sizes = _sizes(config, self._size)
        size = self._size if len(self._sizes) == 1 else -1
        self.outputs = (Output("embedding", "FP32", (-1, size)),)

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = {
            "normalize": boolean,
            "truncate": boolean,
            "dimensions": self._check_size,
            "prompt_name": one_of(tuple(self._layout.prompts)),
            TOKENS: self._check_tokens,
        }
        defaults = {
            "normalize": self._layout.normalize,
            "truncate": False,
            "dimensions": self._size,
            "prompt_name": self._layout.default_prompt,
            TOKENS: None,
        }
        return EncoderInstance(fields, parse_named(parameters, checks, defaults))

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the one text."""
        tokens = instance.parameters[TOKENS]
        if tokens is not None:
            return (EncoderInput(tokens),)
        prompt = self._layout.prompts.get(instance.parameters["prompt_name"], "")
        text = prompt + instance.fields["text"]
        if self._layout.lower:
            text = text.lower()
        return (self._tokenizing.text(text, truncate=instance.parameters["truncate"]),)

    def postprocess(self, output: Any, batch: EncoderBatch) -> Sequence[torch.Tensor]:
        """Return each row's vector, of shape (hidden,), in float32."""
        pooled = pool(output.last_hidden_state, batch.mask, self._layout.pooling)
        return list(pooled.float().cpu())

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[torch.Tensor],
    ) -> Vector:
        """Return the vector."""
        vector = results[0][: instance.parameters["dimensions"]]
        if instance.parameters["normalize"]:
            vector = torch.nn.functional.normalize(vector, dim=0)
        return Vector(vector.tolist(), len(texts[0].ids))

    def _check_size(self, name: str, value: Any) -> int:
        size = integer(name, value, 1, self._size)
        if size not in self._sizes:
            sizes = ", ".join(map(str, self._sizes[:8]))
            raise RequestError(f"{name} must be one that this model was made for: {sizes}.")
        return size

    def _check_tokens(self, name: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list | tuple):
            raise RequestError(f"{name} must be a list of token ids.")
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
    """Return one vector for each row, of shape (rows, hidden), as sentence-transformers does.

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
    """Return the numbers of dimensions that a model was trained for, the full one first.

    The config's keys are those that vLLM reads: ``matryoshka_dimensions``, ``is_matryoshka``.
    """
    named = getattr(config, "matryoshka_dimensions", None)
    if isinstance(named, (list, tuple)):
        return (size, *(int(value) for value in named if 0 < int(value) < size))
    if getattr(config, "is_matryoshka", False):
        return (size, *range(size - 1, 0, -1))
    return (size,)
