"""Reranking with a cross-encoder: how well a text answers a query, for each pair by itself.

The score lies between 0 and 1; with the parameter ``raw_scores`` it is the model's logit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from predictor.engine.encoding.inputs import EncoderInput
from predictor.errors import CheckpointError
from predictor.tasks.answers import Score
from predictor.tasks.encoder_task import Array, EncoderTaskSpec, sigmoid
from predictor.tasks.model_facts import ModelFacts
from predictor.tasks.parameters import boolean, parse_named
from predictor.tasks.request import EncoderInstance
from predictor.tasks.task import Field, Output
from predictor.tasks.tokenization import CUT_CHECKS, Tokenizing


class Rerank(EncoderTaskSpec):
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "rerank"
    fields = (
        Field("query", example="How is the weather?"),
        Field("text", aliases=("document",)),
    )
    outputs = (Output("score", "FP32", (-1,)),)

    def __init__(self, tokenizing: Tokenizing, facts: ModelFacts) -> None:
        """Create the task.

        Raises:
            CheckpointError: The model has several labels.
        """
        if len(facts.labels) != 1:
            raise CheckpointError(
                f"This model tells {len(facts.labels)} labels apart; one that ranks has one."
            )
        self._tokenizing = tokenizing

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = {"raw_scores": boolean, **CUT_CHECKS}
        defaults = {"raw_scores": False, **self._tokenizing.cut_defaults}
        return EncoderInstance(fields, parse_named(parameters, checks, defaults))

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the one pair."""
        query, text = instance.fields["query"], instance.fields["text"]
        cut = self._tokenizing.cut_of(instance.parameters)
        return (self._tokenizing.text(query, text, cut=cut),)

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[Array],
    ) -> Score:
        """Return how well the text answers the query."""
        (logit,) = results
        return Score(float((logit if instance.parameters["raw_scores"] else sigmoid(logit))[0]))
