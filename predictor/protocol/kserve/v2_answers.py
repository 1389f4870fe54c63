"""Answers as V2's output tensors.

The outputs of each task, for n instances:

generation
    ``text``, ``finish_reason`` BYTES, ``prompt_tokens``, ``completion_tokens`` INT32, all in the
    shape of the tensor of prompts
sequence classification
    ``label`` BYTES, ``score`` FP32 [n]; on request ``probabilities``, ``logits`` FP32 [n, labels],
    labels in the order of the model's config
token classification
    a row for each entity of all texts: ``row`` INT32 (index of the text), ``label`` BYTES,
    ``score`` FP32, ``word`` BYTES, ``start``, ``end`` INT32 [entities]
question answering
    ``answer`` BYTES, ``score`` FP32, ``start``, ``end`` INT32 [n]
fill-mask
    a row for each mask of all texts: ``row`` INT32 (index of the text) [masks], ``token`` BYTES,
    ``token_id`` INT32, ``score`` FP32 [masks, top_k]
text embedding
    ``embedding`` FP32 [n, dimensions]
rerank
    ``score`` FP32 [n]

The data types are those of the task's outputs (`predictor.tasks.task.Output`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from predictor.protocol.kserve.tensors import Element
from predictor.tasks.answers import (
    Answer,
    Classes,
    Completion,
    Entities,
    Masks,
    Score,
    Span,
    Vector,
    of_type,
)


@dataclass(frozen=True, slots=True)
class Column:
    """An output tensor.

    Attributes:
        shape: Its shape.
        data: Its elements, in row-major order.
        datatype: Their type; None for the one that the task's output has.
    """

    shape: tuple[int, ...]
    data: Sequence[Element]
    datatype: str | None = None


def columns(answers: Sequence[Answer], shape: tuple[int, ...]) -> dict[str, Column]:
    """Return the outputs by name.

    Args:
        answers: The answers to all instances of a request, at least one, all of one type.
        shape: Shape of the tensor of prompts, which completions take over.
    """
    first = answers[0]
    match first:
        case Completion():
            return _completions(of_type(answers, Completion), shape)
        case Classes():
            return _classes(of_type(answers, Classes))
        case Entities():
            return _entities(of_type(answers, Entities))
        case Span():
            return _spans(of_type(answers, Span))
        case Masks():
            return _masks(of_type(answers, Masks))
        case Vector():
            return _vectors(of_type(answers, Vector))
        case Score():
            scores = of_type(answers, Score)
            return {"score": Column((len(scores),), [each.score for each in scores])}
        case _:
            assert_never(first)


def _completions(completions: Sequence[Completion], shape: tuple[int, ...]) -> dict[str, Column]:
    return {
        "text": Column(shape, [each.text for each in completions]),
        "finish_reason": Column(shape, [each.finish_reason for each in completions]),
        "prompt_tokens": Column(shape, [each.prompt_tokens for each in completions]),
        "completion_tokens": Column(shape, [each.completion_tokens for each in completions]),
    }


def _classes(answers: Sequence[Classes]) -> dict[str, Column]:
    count = len(answers)
    result = {
        "label": Column((count,), [answer.label for answer in answers]),
        "score": Column((count,), [answer.score for answer in answers]),
    }
    optional = {
        "probabilities": [answer.probabilities for answer in answers],
        "logits": [answer.logits for answer in answers],
    }
    for name, rows in optional.items():
        data = [value for row in rows if row is not None for value in row]
        if None not in rows:
            result[name] = Column((count, len(answers[0].labels)), data)
    return result


def _entities(answers: Sequence[Entities]) -> dict[str, Column]:
    rows = [row for row, answer in enumerate(answers) for _ in answer.entities]
    entities = [entity for answer in answers for entity in answer.entities]
    shape = (len(rows),)
    return {
        "row": Column(shape, rows),
        "label": Column(shape, [entity.label for entity in entities]),
        "score": Column(shape, [entity.score for entity in entities]),
        "word": Column(shape, [entity.word for entity in entities]),
        "start": Column(shape, [entity.start for entity in entities]),
        "end": Column(shape, [entity.end for entity in entities]),
    }


def _spans(spans: Sequence[Span]) -> dict[str, Column]:
    shape = (len(spans),)
    return {
        "answer": Column(shape, [span.answer for span in spans]),
        "score": Column(shape, [span.score for span in spans]),
        "start": Column(shape, [span.start for span in spans]),
        "end": Column(shape, [span.end for span in spans]),
    }


def _masks(answers: Sequence[Masks]) -> dict[str, Column]:
    rows = [row for row, answer in enumerate(answers) for _ in answer.masks]
    masks = [mask for answer in answers for mask in answer.masks]
    fillings = [filling for mask in masks for filling in mask]
    shape = (len(masks), len(masks[0]))
    return {
        "row": Column(shape[:1], rows),
        "token": Column(shape, [filling.token for filling in fillings]),
        "token_id": Column(shape, [filling.token_id for filling in fillings]),
        "score": Column(shape, [filling.score for filling in fillings]),
    }


def _vectors(vectors: Sequence[Vector]) -> dict[str, Column]:
    shape = (len(vectors), len(vectors[0].values))  # one request has one number of dimensions
    return {"embedding": Column(shape, [value for each in vectors for value in each.values])}
