"""Reranking with a cross-encoder: how well a text answers a query, for each pair by itself.

V1: ``{"instances": [{"query": "Who?", "text": "Ada did."}]}`` answers
``{"predictions": [{"score": 0.9}]}``, between 0 and 1; with the parameter ``raw_scores`` the
model's own number. V2: BYTES inputs ``query`` and ``text`` of n elements, or one query for all
texts; output ``score`` FP32 [n]. Whole lists are ranked at ``/openai/v1/rerank`` and ``/rerank``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from predictor.engine.encoding.inputs import Batch, Text
from predictor.errors import CheckpointError
from predictor.tasks.encoder_spec import Ask, Column, Field, Output
from predictor.tasks.parameters import boolean, parse_named
from predictor.tasks.tokenization import Tokenizing

_UNSAID = {"raw_scores": False, "truncate": False}


class Rerank:
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "rerank"
    fields = (
        Field("query", example="How is the weather?"),
        Field("text", aliases=("document",)),
    )
    outputs = (Output("score", "FP32", (-1,)),)

    def __init__(self, tokenizing: Tokenizing, config: PreTrainedConfig) -> None:
        """Puts the parts together.

        Raises:
            CheckpointError: The model has several labels.
        """
        if config.num_labels != 1:
            raise CheckpointError(
                f"This model tells {config.num_labels} labels apart; one that ranks has one."
            )
        self._tokenizing = tokenizing

    def decode(self, fields: Mapping[str, str], parameters: Mapping[str, object]) -> Ask:
        """Returns what is asked."""
        return Ask(fields, parse_named(parameters, dict.fromkeys(_UNSAID, boolean), _UNSAID))

    def tokenize(self, ask: Ask) -> tuple[Text, ...]:
        """Returns the one pair."""
        query, text = ask.fields["query"], ask.fields["text"]
        return (self._tokenizing.text(query, text, truncate=ask.parameters["truncate"]),)

    def run(self, output: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Returns each row's logit, of shape (1,), in float32."""
        return list(output.logits.float().cpu())

    def encode(self, ask: Ask, texts: Sequence[Text], found: Sequence[torch.Tensor]) -> float:
        """Returns how well the text answers the query."""
        (logit,) = found
        return float(logit[0] if ask.parameters["raw_scores"] else logit[0].sigmoid())

    def prediction(self, answer: float) -> object:
        """Returns an answer as a JSON value."""
        return {"score": answer}

    def columns(self, answers: Sequence[float]) -> tuple[Column, ...]:
        """Returns answers as tensors."""
        return (Column("score", "FP32", (len(answers),), list(answers)),)
