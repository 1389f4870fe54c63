"""Answers as V1's predictions, and the events of a V1 stream, as JSON values.

The prediction of each task:

generation
    ``{"text": "...", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 5}``
sequence classification
    ``{"label": "POSITIVE", "score": 0.98}``; on request also ``"probabilities"`` and ``"logits"``,
    objects by label
token classification
    ``[{"label": "PER", "score": 0.99, "word": "Ada", "start": 0, "end": 3}, ...]``
question answering
    ``{"answer": "Ada", "score": 0.9, "start": 0, "end": 3}``
fill-mask
    ``[{"token": "a", "token_id": 8, "score": 0.9, "sequence": "..."}, ...]``; for several masks a
    list of such lists
text embedding
    ``[0.1, ...]``
rerank
    ``{"score": 0.9}``

``start`` and ``end`` count characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import assert_never

from predictor.tasks.answers import (
    Answer,
    Classes,
    Completion,
    Entities,
    Masks,
    Piece,
    Score,
    Span,
    Vector,
    finish_reason,
)


def prediction(answer: Answer) -> object:
    """Return an answer as a JSON value."""
    match answer:
        case Completion():
            return _completion(answer)
        case Classes():
            return _classes(answer)
        case Entities():
            return [asdict(entity) for entity in answer.entities]
        case Span() | Score():
            return asdict(answer)
        case Masks():
            return _masks(answer)
        case Vector():
            return answer.values.tolist()
        case _:
            assert_never(answer)


def text_or_prediction(answer: Answer) -> object:
    """Return the bare text of a completion, and the prediction of any other answer."""
    return answer.text if isinstance(answer, Completion) else prediction(answer)


def by_label(answer: Classes, values: Sequence[float]) -> dict[str, float]:
    """Return the numbers of all labels as an object."""
    return dict(zip(answer.labels, values, strict=True))


def events(piece: Piece) -> list[object]:
    """Return the one event of a piece of a streamed reply; the last piece has the token counts."""
    event: dict[str, object] = {"index": piece.index, "text": piece.text, "finish_reason": None}
    if piece.ending is not None:
        event["finish_reason"] = finish_reason(piece.ending)
        event["prompt_tokens"] = piece.prompt_tokens
        event["completion_tokens"] = piece.completion_tokens
    return [event]


def _completion(completion: Completion) -> dict[str, object]:
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }


def _classes(answer: Classes) -> dict[str, object]:
    optional = {"probabilities": answer.probabilities, "logits": answer.logits}
    numbers = {
        name: by_label(answer, values) for name, values in optional.items() if values is not None
    }
    return {"label": answer.label, "score": answer.score, **numbers}


def _masks(answer: Masks) -> object:
    lists = [[asdict(filling) for filling in fillings] for fillings in answer.masks]
    return lists[0] if len(lists) == 1 else lists
