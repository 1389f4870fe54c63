"""Sequence classification: the label of a text, or of a pair of texts.

With ``return_probabilities`` an answer has the probability of every label besides, with
``return_raw_logits`` its logit, in the order of the model's config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from predictor.engine.encoding.inputs import EncoderInput
from predictor.tasks.answers import Classes
from predictor.tasks.encoder_task import Array, EncoderTaskSpec, sigmoid, softmax
from predictor.tasks.model_facts import ModelFacts
from predictor.tasks.parameters import boolean, parse_named
from predictor.tasks.request import EncoderInstance
from predictor.tasks.task import Field, Output
from predictor.tasks.tokenization import CUT_CHECKS, Tokenizing


class SequenceClassification(EncoderTaskSpec):
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "sequence_classification"
    fields = (
        Field("text", aliases=("prompt", "data", "sequence")),
        Field("text_pair", required=False),
    )

    def __init__(
        self,
        tokenizing: Tokenizing,
        facts: ModelFacts,
        *,
        return_probabilities: bool = False,
        return_raw_logits: bool = False,
    ) -> None:
        """Create the task.

        Args:
            tokenizing: The tokenizer.
            facts: The model's facts, for its labels.
            return_probabilities: Default of the parameter of this name.
            return_raw_logits: Default of the parameter of this name.
        """
        self._tokenizing = tokenizing
        self._labels = facts.labels
        count = len(self._labels)
        self.outputs = (
            Output("label", "BYTES", (-1,)),
            Output("score", "FP32", (-1,)),
            Output("probabilities", "FP32", (-1, count), requested_by="return_probabilities"),
            Output("logits", "FP32", (-1, count), requested_by="return_raw_logits"),
        )
        self._kind = facts.problem_type
        self._defaults = {
            "return_probabilities": return_probabilities,
            "return_raw_logits": return_raw_logits,
            **tokenizing.cut_defaults,
        }

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = {**dict.fromkeys(self._defaults, boolean), **CUT_CHECKS}
        return EncoderInstance(fields, parse_named(parameters, checks, self._defaults))

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the one text, or pair."""
        fields, cut = instance.fields, self._tokenizing.cut_of(instance.parameters)
        return (self._tokenizing.text(fields["text"], fields.get("text_pair"), cut=cut),)

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[Array],
    ) -> Classes:
        """Return the class of the text."""
        (logits,) = results
        scores = probabilities_of(logits, self._kind)
        best = int(scores.argmax())
        return Classes(
            self._labels[best],
            float(scores[best]),
            self._labels,
            tuple(scores.tolist()) if instance.parameters["return_probabilities"] else None,
            tuple(logits.tolist()) if instance.parameters["return_raw_logits"] else None,
        )


def probabilities_of(logits: Array, kind: str | None) -> Array:
    """Return the scores of logits of shape (labels,), as transformers' pipeline does.

    Args:
        logits: The logits of one text.
        kind: The ``problem_type`` of the model's config. Labels exclude each other by default
            (softmax). Several independent labels, or a single one, are probabilities each
            (sigmoid). The numbers of a regression stay as they are.
    """
    if kind == "regression":
        return logits
    if kind == "multi_label_classification" or len(logits) == 1:
        return sigmoid(logits)
    return softmax(logits)
