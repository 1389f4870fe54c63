"""Token classification: the labels of a text's tokens, and the entities that they form.

The parameter ``aggregation_strategy`` says how tokens become entities, as in transformers'
pipeline: ``simple`` (the default), ``first``, ``average``, ``max``, or ``none`` for single tokens.
Tokens labelled ``O`` are left out. With ``return_offsets_mapping`` the answer has every token with
its label, ``O`` included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from predictor.engine.encoding.inputs import EncoderInput
from predictor.errors import CheckpointError
from predictor.private.transformers import token_aggregation
from predictor.tasks.answers import Entities, Entity
from predictor.tasks.encoder_task import Array, EncoderTaskSpec, softmax
from predictor.tasks.model_facts import ModelFacts
from predictor.tasks.parameters import boolean, one_of, parse_named
from predictor.tasks.request import EncoderInstance
from predictor.tasks.task import Field, Output
from predictor.tasks.tokenization import CUT_CHECKS, Tokenizing, as_text

_STRATEGIES = ("none", "simple", "first", "average", "max")


class TokenClassification(EncoderTaskSpec):
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "token_classification"
    fields = (Field("text", aliases=("prompt", "data")),)
    outputs = (
        Output("row", "INT32", (-1,)),
        Output("label", "BYTES", (-1,)),
        Output("score", "FP32", (-1,)),
        Output("word", "BYTES", (-1,)),
        Output("start", "INT32", (-1,)),
        Output("end", "INT32", (-1,)),
    )

    def __init__(
        self,
        tokenizing: Tokenizing,
        facts: ModelFacts,
        *,
        return_offsets_mapping: bool = False,
    ) -> None:
        """Create the task.

        Args:
            tokenizing: The tokenizer.
            facts: The model's facts, for its labels.
            return_offsets_mapping: Default of the parameter of this name.

        Raises:
            CheckpointError: The tokenizer gives no offsets.
        """
        check_offsets(tokenizing, self.task)
        self._tokenizing = tokenizing
        self._aggregation = _Aggregation(tokenizing.tokenizer, facts.labels)
        self._defaults = {
            "return_offsets_mapping": return_offsets_mapping,
            "aggregation_strategy": "simple",
            **tokenizing.cut_defaults,
        }

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = {
            "return_offsets_mapping": boolean,
            "aggregation_strategy": one_of(_STRATEGIES),
            **CUT_CHECKS,
        }
        return EncoderInstance(fields, parse_named(parameters, checks, self._defaults))

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the one text, with the offsets of its tokens and which of them are special."""
        encoding = self._tokenizing.encode(
            instance.fields["text"],
            cut=self._tokenizing.cut_of(instance.parameters),
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        about = encoding["offset_mapping"], encoding["special_tokens_mask"]
        return (as_text(encoding, about),)

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[Array],
    ) -> Entities:
        """Return the entities of the text."""
        is_each = instance.parameters["return_offsets_mapping"]
        strategy = "none" if is_each else instance.parameters["aggregation_strategy"]
        (text,), (logits,) = texts, results
        entities = self._aggregation.entities(
            instance.fields["text"], text, logits, strategy, ignored=() if is_each else ("O",)
        )
        return Entities(entities, tuple(np.argmax(logits, axis=-1).tolist()))


class _Aggregation:
    """transformers' own aggregation of tokens, without the rest of its pipeline."""

    def __init__(self, tokenizer: Any, labels: Sequence[str]) -> None:
        self._aggregate = token_aggregation(tokenizer, labels)

    def entities(
        self,
        sentence: str,
        text: EncoderInput,
        logits: Array,
        strategy: str,
        ignored: Sequence[str],
    ) -> tuple[Entity, ...]:
        """Return the entities of a text as the pipeline does."""
        offsets, special = text.about
        groups = [
            group
            for group in self._aggregate(
                sentence, np.array(text.ids), softmax(logits), offsets, np.array(special), strategy
            )
            if group.get("entity_group", group.get("entity")) not in ignored
        ]
        return tuple(
            Entity(
                group.get("entity_group") or group["entity"],
                float(group["score"]),
                group["word"],
                int(group["start"]),
                int(group["end"]),
            )
            for group in groups
        )


def check_offsets(tokenizing: Tokenizing, task: str) -> None:
    """Check that a tokenizer gives the offsets of its tokens in a text.

    Raises:
        CheckpointError: It does not.
    """
    if not tokenizing.tokenizer.is_fast:
        raise CheckpointError(
            f"This model's tokenizer does not tell where in a text its tokens are, which {task} "
            "needs; a tokenizer.json is missing."
        )
