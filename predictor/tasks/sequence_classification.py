"""Sequence classification: which label a text, or a pair of texts, has.

V1: ``{"instances": ["I like it", {"text": "...", "text_pair": "..."}]}`` answers
``{"predictions": [{"label": "POSITIVE", "score": 0.98}, ...]}``; with ``return_probabilities`` each
has ``"probabilities": {"NEGATIVE": 0.02, "POSITIVE": 0.98}`` besides, with ``return_raw_logits``
``"logits"`` in the same form.

V2: BYTES inputs ``text`` and, for pairs, ``text_pair``, both of n elements; outputs ``label`` BYTES
[n], ``score`` FP32 [n], and where they were asked for ``probabilities`` and ``logits`` FP32
[n, labels], labels in the order of the model's config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from predictor.engine.encoding.inputs import Batch, Text
from predictor.tasks.encoder_spec import Ask, Column, Field, Output
from predictor.tasks.parameters import boolean, parse_named
from predictor.tasks.tokenization import Tokenizing


@dataclass(frozen=True, slots=True)
class Classes:
    """What a text is.

    Attributes:
        label: The most probable label.
        score: Its probability.
        probabilities: Of all labels; None where nobody asked.
        logits: Of all labels; None where nobody asked.
    """

    label: str
    score: float
    probabilities: tuple[float, ...] | None
    logits: tuple[float, ...] | None


class SequenceClassification:
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
        """Puts the parts together.

        Args:
            tokenizing: Makes tokens.
            config: The model's, for its labels.
            return_probabilities: Whether they are told where a request says nothing.
            return_raw_logits: Whether they are told where a request says nothing.
        """
        self._tokenizing = tokenizing
        self.labels = labels_of(config)
        self._kind = getattr(config, "problem_type", None)
        self._unsaid = {
            "return_probabilities": return_probabilities,
            "return_raw_logits": return_raw_logits,
            "truncate": False,
        }

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All that V2 may answer with."""
        count = len(self.labels)
        return (
            Output("label", "BYTES", (-1,)),
            Output("score", "FP32", (-1,)),
            Output("probabilities", "FP32", (-1, count), asked_by="return_probabilities"),
            Output("logits", "FP32", (-1, count), asked_by="return_raw_logits"),
        )

    def decode(self, fields: Mapping[str, str], parameters: Mapping[str, object]) -> Ask:
        """Returns what is asked."""
        return Ask(
            fields, parse_named(parameters, dict.fromkeys(self._unsaid, boolean), self._unsaid)
        )

    def tokenize(self, ask: Ask) -> tuple[Text, ...]:
        """Returns the one text, or pair."""
        fields, truncate = ask.fields, ask.parameters["truncate"]
        pair = fields.get("text_pair")
        return (self._tokenizing.text(fields["text"], pair, truncate=truncate),)

    def run(self, output: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Returns each row's logits, of shape (labels,), in float32."""
        return list(output.logits.float().cpu())

    def encode(self, ask: Ask, texts: Sequence[Text], found: Sequence[torch.Tensor]) -> Classes:
        """Returns what the text is."""
        (logits,) = found
        scores = probabilities_of(logits, self._kind)
        best = int(scores.argmax())
        return Classes(
            self.labels[best],
            float(scores[best]),
            tuple(scores.tolist()) if ask.parameters["return_probabilities"] else None,
            tuple(logits.tolist()) if ask.parameters["return_raw_logits"] else None,
        )

    def prediction(self, answer: Classes) -> object:
        """Returns an answer as a JSON value."""
        told = {"probabilities": answer.probabilities, "logits": answer.logits}
        numbers = {
            name: dict(zip(self.labels, values, strict=True))
            for name, values in told.items()
            if values is not None
        }
        return {"label": answer.label, "score": answer.score, **numbers}

    def columns(self, answers: Sequence[Classes]) -> tuple[Column, ...]:
        """Returns answers as tensors."""
        count = len(answers)
        found = [
            Column("label", "BYTES", (count,), [answer.label for answer in answers]),
            Column("score", "FP32", (count,), [answer.score for answer in answers]),
        ]
        for name in ("probabilities", "logits"):
            rows = [getattr(answer, name) for answer in answers]
            if None not in rows:
                data = [value for row in rows for value in row]
                found.append(Column(name, "FP32", (count, len(self.labels)), data))
        return tuple(found)


def labels_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """Returns a model's labels in the order of its logits."""
    names: Mapping[Any, str] = config.id2label or {}
    count = int(config.num_labels or len(names))
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(count))


def probabilities_of(logits: torch.Tensor, kind: str | None) -> torch.Tensor:
    """Returns what logits of shape (labels,) mean, as transformers' pipeline has it.

    Args:
        logits: One text's.
        kind: The ``problem_type`` of the model's config: labels that exclude each other are the
            default, of several that hold each by itself or of a lone one each is a probability,
            and a regression's numbers are what they are.
    """
    if kind == "regression":
        return logits
    if kind == "multi_label_classification" or len(logits) == 1:
        return logits.sigmoid()
    return logits.softmax(dim=-1)
