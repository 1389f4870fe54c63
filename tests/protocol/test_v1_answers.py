from __future__ import annotations

from array import array

from predictor.protocol.kserve import v1
from predictor.protocol.kserve.v1_answers import by_label, prediction
from predictor.tasks.answers import (
    Classes,
    Completion,
    Entities,
    Entity,
    Filling,
    Masks,
    Score,
    Span,
    Vector,
)

CLASSES = Classes("good", 0.75, ("bad", "good"), (0.25, 0.75), None)
FILLING = Filling("a", 7, 0.5, "a b")


def test_classes_have_the_numbers_that_were_requested_by_label() -> None:
    assert prediction(CLASSES) == {
        "label": "good",
        "score": 0.75,
        "probabilities": {"bad": 0.25, "good": 0.75},
    }
    assert by_label(CLASSES, (1.0, 2.0)) == {"bad": 1.0, "good": 2.0}


def test_entities_are_a_list_and_a_span_is_an_object() -> None:
    entity = Entity("PER", 0.5, "Ada", 0, 3)
    expected = {"label": "PER", "score": 0.5, "word": "Ada", "start": 0, "end": 3}
    assert prediction(Entities((entity,))) == [expected]
    assert prediction(Entities(())) == []
    span = {"answer": "Ada", "score": 0.5, "start": 0, "end": 3}
    assert prediction(Span("Ada", 0.5, 0, 3)) == span


def test_one_mask_is_a_list_and_several_are_a_list_of_lists() -> None:
    filling = {"token": "a", "token_id": 7, "score": 0.5, "sequence": "a b"}
    assert prediction(Masks(((FILLING,),))) == [filling]
    assert prediction(Masks(((FILLING,), (FILLING,)))) == [[filling], [filling]]


def test_vectors_and_scores() -> None:
    assert prediction(Vector(array("f", [0.5, 1.0]), 3)) == [0.5, 1.0]
    assert prediction(Score(0.5)) == {"score": 0.5}


def test_only_completions_can_be_their_text_alone() -> None:
    answers = [Completion("A", "eos_token", 1, 2), Score(0.5)]
    assert v1.encode(answers, predictions="texts") == {"predictions": ["A", {"score": 0.5}]}
