"""Fill-mask: which tokens a text's masks may stand for.

V1: ``{"instances": ["Paris is the <mask> of France"]}``, with the model's own mask token, answers
for each text with its best tokens: ``[{"token": "capital", "token_id": 812, "score": 0.9,
"sequence": "Paris is the capital of France"}, ...]``; for a text of several masks with a list of
these lists. The parameter ``top_k`` (5) is how many.

V2: a BYTES input ``text`` of n elements; the outputs have a row for each mask of all texts: ``row``
INT32 [masks] (which text), ``token`` BYTES, ``token_id`` INT32 and ``score`` FP32 [masks, top_k].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from predictor.engine.encoding.inputs import Batch, Text
from predictor.errors import CheckpointError, RequestError
from predictor.tasks.encoder_spec import Ask, Column, Field, Output
from predictor.tasks.parameters import boolean, integer, parse_named
from predictor.tasks.tokenization import Tokenizing

_MOST = 100
"""Tokens for one mask; those after it have a probability near zero."""


@dataclass(frozen=True, slots=True)
class Filling:
    """A token that a mask may stand for.

    Attributes:
        token: Its text.
        token_id: Its number in the vocabulary.
        score: Its probability.
        sequence: The text with it, other masks left as they are.
    """

    token: str
    token_id: int
    score: float
    sequence: str


Masks = tuple[tuple[Filling, ...], ...]
"""For each mask of a text its best fillings."""


class FillMask:
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "fill_mask"
    outputs = (
        Output("row", "INT32", (-1,)),
        Output("token", "BYTES", (-1, -1)),
        Output("token_id", "INT32", (-1, -1)),
        Output("score", "FP32", (-1, -1)),
    )

    def __init__(self, tokenizing: Tokenizing) -> None:
        """Puts the parts together.

        Raises:
            CheckpointError: The tokenizer has no mask.
        """
        if tokenizing.tokenizer.mask_token_id is None:
            raise CheckpointError(
                "This model's tokenizer has no mask token, which fill_mask needs."
            )
        self._tokenizing = tokenizing
        example = f"Today the {tokenizing.tokenizer.mask_token} is really nice."
        self.fields = (Field("text", aliases=("prompt", "data"), example=example),)

    def decode(self, fields: Mapping[str, str], parameters: Mapping[str, object]) -> Ask:
        """Returns what is asked."""
        checks = {"top_k": lambda name, value: integer(name, value, 1, _MOST), "truncate": boolean}
        return Ask(fields, parse_named(parameters, checks, {"top_k": 5, "truncate": False}))

    def tokenize(self, ask: Ask) -> tuple[Text, ...]:
        """Returns the one text, which remembers where its masks are."""
        text = self._tokenizing.text(ask.fields["text"], truncate=ask.parameters["truncate"])
        mask = self._tokenizing.tokenizer.mask_token_id
        places = tuple(place for place, token in enumerate(text.ids) if token == mask)
        if not places:
            token = self._tokenizing.tokenizer.mask_token
            raise RequestError(f"A text has no mask; this model's is {token!r}.")
        return (Text(text.ids, text.types, places),)

    def run(self, output: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Returns the probabilities at each row's masks, of shape (masks, vocabulary)."""
        return [
            output.logits[row, list(text.about or ())].float().softmax(dim=-1).cpu()
            for row, text in enumerate(batch.texts)
        ]

    def encode(self, ask: Ask, texts: Sequence[Text], found: Sequence[torch.Tensor]) -> Masks:
        """Returns the best tokens for each mask."""
        best = found[0].topk(min(ask.parameters["top_k"], found[0].shape[-1]))
        return tuple(
            tuple(
                self._filling(texts[0], place, int(token), float(score))
                for token, score in zip(tokens, scores, strict=True)
            )
            for place, tokens, scores in zip(texts[0].about, best.indices, best.values, strict=True)
        )

    def prediction(self, answer: Masks) -> object:
        """Returns an answer as a JSON value."""
        told = [[asdict(filling) for filling in fillings] for fillings in answer]
        return told[0] if len(told) == 1 else told

    def columns(self, answers: Sequence[Masks]) -> tuple[Column, ...]:
        """Returns answers as tensors."""
        masks = [(row, mask) for row, answer in enumerate(answers) for mask in answer]
        shape = (len(masks), len(masks[0][1]))
        found = [Column("row", "INT32", shape[:1], [row for row, _ in masks])]
        for output in self.outputs[1:]:
            data = [getattr(filling, output.name) for _, mask in masks for filling in mask]
            found.append(Column(output.name, output.datatype, shape, data))
        return tuple(found)

    def _filling(self, text: Text, place: int, token: int, score: float) -> Filling:
        tokenizer = self._tokenizing.tokenizer
        filled = [*text.ids[:place], token, *text.ids[place + 1 :]]
        # The masks that are left are special tokens too.
        is_alone = len(text.about) == 1
        return Filling(
            tokenizer.decode([token]),
            token,
            score,
            tokenizer.decode(filled, skip_special_tokens=is_alone),
        )
