"""Sequence classification: the label of a text, or of a pair of texts.

With ``return_probabilities`` an answer has the probability of every label besides, with
``return_raw_logits`` its logit, in the order of the model's config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from predictor.engine.encoding.inputs import EncoderBatch, EncoderInput
from predictor.tasks.answers import Classes
from predictor.tasks.encoder_task import EncoderTaskSpec
from predictor.tasks.parameters import boolean, parse_named
from predictor.tasks.request import EncoderInstance
from predictor.tasks.task import Field, Output
from predictor.tasks.tokenization import Tokenizing


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
        config: PreTrainedConfig,
        *,
        return_probabilities: bool = False,
        return_raw_logits: bool = False,
    ) -> None:
        """Create the task.

        Args:
            tokenizing: The tokenizer.
            config: The model's config, for its labels.
            return_probabilities: Default of the parameter of this name.
            return_raw_logits: Default of the parameter of this name.
        """
        self._tokenizing = tokenizing
        self._labels = labels_of(config)
        count = len(self._labels)
        self.outputs = (
            Output("label", "BYTES", (-1,)),
            Output("score", "FP32", (-1,)),
            Output("probabilities", "FP32", (-1, count), requested_by="return_probabilities"),
            Output("logits", "FP32", (-1, count), requested_by="return_raw_logits"),
        )
        self._kind = getattr(config, "problem_type", None)
        self._defaults = {
            "return_probabilities": return_probabilities,
            "return_raw_logits": return_raw_logits,
            "truncate": False,
        }

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = dict.fromkeys(self._defaults, boolean)
        return EncoderInstance(fields, parse_named(parameters, checks, self._defaults))

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the one text, or pair."""
        fields, truncate = instance.fields, instance.parameters["truncate"]
        pair = fields.get("text_pair")
        return (self._tokenizing.text(fields["text"], pair, truncate=truncate),)

    def postprocess(self, output: Any, batch: EncoderBatch) -> Sequence[torch.Tensor]:
        """Return each row's logits, of shape (labels,), in float32."""
        return list(output.logits.float().cpu())

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[torch.Tensor],
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


def labels_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return a model's labels in the order of its logits."""
    names: Mapping[Any, str] = config.id2label or {}
    count = int(config.num_labels or len(names))
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(count))


def probabilities_of(logits: torch.Tensor, kind: str | None) -> torch.Tensor:
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
        return logits.sigmoid()
    return logits.softmax(dim=-1)
