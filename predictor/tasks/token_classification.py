"""Token classification: what the tokens of a text are, and the entities that they make up.

V1: ``{"instances": ["Ada lives in London"]}`` answers, for each text, its entities:
``[{"label": "PER", "score": 0.99, "word": "Ada", "start": 0, "end": 3}, ...]``, where `start` and
`end` are characters. The parameter ``aggregation_strategy`` says how tokens become entities, as
transformers' pipeline has it: ``simple`` (the default), ``first``, ``average``, ``max``, or
``none`` for tokens by themselves. Tokens labelled ``O`` are left out. With
``return_offsets_mapping`` every token is told with its label, and none left out.

V2: a BYTES input ``text`` of n elements; the outputs are one element for each entity of all texts:
``row`` INT32 (which text), ``label`` BYTES, ``score`` FP32, ``word`` BYTES, ``start`` and ``end``
INT32, all [entities].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedConfig, TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from predictor.engine.encoding.inputs import Batch, Text
from predictor.errors import CheckpointError
from predictor.tasks.encoder_spec import Ask, Column, Field, Output
from predictor.tasks.parameters import boolean, one_of, parse_named
from predictor.tasks.sequence_classification import labels_of
from predictor.tasks.tokenization import Tokenizing, as_text

_STRATEGIES = tuple(str(strategy.value) for strategy in AggregationStrategy)


@dataclass(frozen=True, slots=True)
class Entity:
    """A part of a text with a label.

    Attributes:
        label: Its label, without the prefix that says where an entity begins.
        score: Its probability.
        word: Its text as the tokens have it.
        start: Its first character.
        end: The character after its last.
    """

    label: str
    score: float
    word: str
    start: int
    end: int


class TokenClassification:
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
        config: PreTrainedConfig,
        *,
        return_offsets_mapping: bool = False,
    ) -> None:
        """Puts the parts together.

        Args:
            tokenizing: Makes tokens.
            config: The model's, for its labels.
            return_offsets_mapping: Whether every token is told where a request says nothing.

        Raises:
            CheckpointError: The tokenizer does not tell where tokens come from.
        """
        check_offsets(tokenizing, self.task)
        self._tokenizing = tokenizing
        self._aggregation = _Aggregation(tokenizing.tokenizer, labels_of(config))
        self._unsaid = {
            "return_offsets_mapping": return_offsets_mapping,
            "aggregation_strategy": "simple",
            "truncate": False,
        }

    def decode(self, fields: Mapping[str, str], parameters: Mapping[str, object]) -> Ask:
        """Returns what is asked."""
        checks = {
            "return_offsets_mapping": boolean,
            "aggregation_strategy": one_of(_STRATEGIES),
            "truncate": boolean,
        }
        return Ask(fields, parse_named(parameters, checks, self._unsaid))

    def tokenize(self, ask: Ask) -> tuple[Text, ...]:
        """Returns the one text, which remembers what the tokenizer said of its tokens."""
        encoding = self._tokenizing.encode(
            ask.fields["text"],
            truncate=ask.parameters["truncate"],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        about = encoding["offset_mapping"], encoding["special_tokens_mask"]
        return (as_text(encoding, about),)

    def run(self, output: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Returns each row's logits, of shape (tokens, labels), in float32."""
        logits = output.logits.float().cpu()
        return [logits[row, : len(text.ids)] for row, text in enumerate(batch.texts)]

    def encode(
        self, ask: Ask, texts: Sequence[Text], found: Sequence[torch.Tensor]
    ) -> tuple[Entity, ...]:
        """Returns the entities of the text."""
        is_each = ask.parameters["return_offsets_mapping"]
        strategy = "none" if is_each else ask.parameters["aggregation_strategy"]
        entities = self._aggregation.entities(
            ask.fields["text"], texts[0], found[0], strategy, ignored=() if is_each else ("O",)
        )
        return tuple(
            Entity(
                entity.get("entity_group") or entity["entity"],
                float(entity["score"]),
                entity["word"],
                int(entity["start"]),
                int(entity["end"]),
            )
            for entity in entities
        )

    def prediction(self, answer: Sequence[Entity]) -> object:
        """Returns an answer as a JSON value."""
        return [asdict(entity) for entity in answer]

    def columns(self, answers: Sequence[Sequence[Entity]]) -> tuple[Column, ...]:
        """Returns answers as tensors."""
        rows = [(row, entity) for row, answer in enumerate(answers) for entity in answer]
        data = {
            output.name: [getattr(e, output.name, row) for row, e in rows]
            for output in self.outputs
        }
        return tuple(
            Column(output.name, output.datatype, (len(rows),), data[output.name])
            for output in self.outputs
        )


class _Aggregation(TokenClassificationPipeline):
    """transformers' own way from tokens to entities, without the rest of its pipeline."""

    def __init__(self, tokenizer: Any, labels: Sequence[str]) -> None:
        """Takes what the aggregation looks at; the pipeline's own would want a model."""
        self.tokenizer = tokenizer
        config = SimpleNamespace(id2label=dict(enumerate(labels)))
        self.model: Any = SimpleNamespace(config=config)

    def entities(
        self,
        sentence: str,
        text: Text,
        logits: torch.Tensor,
        strategy: str,
        ignored: Sequence[str],
    ) -> list[dict[str, Any]]:
        """Returns the entities of a text as the pipeline does."""
        offsets, special = text.about
        output = {
            "logits": logits[None],
            "sentence": sentence,
            "input_ids": [text.ids],
            "offset_mapping": [offsets],
            "special_tokens_mask": torch.tensor([special]),
        }
        aggregate: Any = self.postprocess
        found: list[dict[str, Any]] = aggregate(
            [output], AggregationStrategy(strategy), list(ignored)
        )
        return found


def check_offsets(tokenizing: Tokenizing, task: str) -> None:
    """Checks that a tokenizer tells where in a text its tokens are.

    Raises:
        CheckpointError: It does not.
    """
    if not tokenizing.tokenizer.is_fast:
        raise CheckpointError(
            f"This model's tokenizer does not tell where in a text its tokens are, which {task} "
            "needs; a tokenizer.json is missing."
        )
