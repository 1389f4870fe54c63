"""Answers in the shapes of KServe's Hugging Face server, by setting (`kserve_semantics`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from predictor.protocol.kserve.v1_answers import prediction
from predictor.protocol.kserve.v2_answers import Column, columns
from predictor.protocol.kserve_spec import OUTPUT
from predictor.tasks.answers import Answer, Classes, Entities, Masks, Vector, of_type

PADDING = -100
"""The label of no token, which fills the rows of shorter texts: transformers' own for none."""

_ADDED: tuple[str, ...] = ("probabilities", "logits")
"""Outputs that a parameter adds."""


def kserve_prediction(answer: Answer) -> object:
    """Return an answer as V1's prediction: an index, numbers by index, a token or a vector."""
    match answer:
        case Classes():
            numbers = _by_index(answer)
            if numbers is None:
                return answer.labels.index(answer.label)
            return {str(index): number for index, number in numbers.items()}
        case Entities():
            return [list(answer.token_labels)]
        case Masks():
            return answer.masks[0][0].token.strip()
        case _:
            return prediction(answer)


def kserve_columns(answers: Sequence[Answer], shape: tuple[int, ...]) -> dict[str, Column]:
    """Return KServe's output, and those that a parameter has added; see `columns`.

    Numbers of all classes are a text, as Python writes the dictionary: KServe's clients read it so.
    """
    ours = columns(answers, shape)
    count = len(answers)
    match answers[0]:
        case Classes():
            classes = of_type(answers, Classes)
            added = {name: ours[name] for name in _ADDED if name in ours}
            if added:
                texts = [str(_by_index(each)) for each in classes]
                return {OUTPUT: Column((count,), texts, "BYTES"), **added}
            return {OUTPUT: Column((count,), [each.labels.index(each.label) for each in classes])}
        case Entities():
            rows = [each.token_labels for each in of_type(answers, Entities)]
            longest = max(map(len, rows))
            padded = [
                label for row in rows for label in (*row, *repeat(PADDING, longest - len(row)))
            ]
            return {OUTPUT: Column((count, 1, longest), padded)}
        case Masks():
            tokens = [each.masks[0][0].token.strip() for each in of_type(answers, Masks)]
            return {OUTPUT: Column((count,), tokens)}
        case Vector():
            return {OUTPUT: ours["embedding"]}
        case _:
            return ours


def _by_index(answer: Classes) -> dict[int, float] | None:
    """Return the number of each class, by index; None if none were requested."""
    numbers = answer.probabilities if answer.logits is None else answer.logits
    return None if numbers is None else dict(enumerate(numbers))
