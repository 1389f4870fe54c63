from __future__ import annotations

from array import array

import pytest

from predictor.protocol.kserve.v2_answers import Column, columns
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


def test_completions_take_over_the_shape_of_the_prompts() -> None:
    answers = [Completion("A", "eos_token", 1, 2), Completion("B", "length", 3, 4)]
    assert columns(answers, (1, 2)) == {
        "text": Column((1, 2), ["A", "B"]),
        "finish_reason": Column((1, 2), ["stop", "length"]),
        "prompt_tokens": Column((1, 2), [1, 3]),
        "completion_tokens": Column((1, 2), [2, 4]),
    }


def test_classes_have_a_row_of_labels_only_where_all_have_the_numbers() -> None:
    with_logits = Classes("b", 0.75, ("a", "b"), None, (1.0, 2.0))
    result = columns([with_logits, with_logits], (2,))
    assert list(result) == ["label", "score", "logits"]
    assert result["logits"] == Column((2, 2), [1.0, 2.0, 1.0, 2.0])
    without = Classes("b", 0.75, ("a", "b"), None, None)
    assert list(columns([with_logits, without], (2,))) == ["label", "score"]


def test_entities_of_all_texts_are_rows_with_the_index_of_their_text() -> None:
    entity = Entity("PER", 0.5, "Ada", 0, 3)
    result = columns([Entities((entity, entity)), Entities(()), Entities((entity,))], (3,))
    assert result["row"] == Column((3,), [0, 0, 2])
    assert result["word"] == Column((3,), ["Ada"] * 3)
    assert columns([Entities(())], (1,))["row"] == Column((0,), [])


def test_masks_of_all_texts_are_rows_of_their_best_tokens() -> None:
    best = (Filling("a", 7, 0.5, "a b"), Filling("c", 8, 0.25, "c b"))
    result = columns([Masks((best,)), Masks((best, best))], (2,))
    assert result["row"] == Column((3,), [0, 1, 1])
    assert result["token_id"] == Column((3, 2), [7, 8] * 3)


def test_spans_vectors_and_scores_have_a_row_for_each_instance() -> None:
    assert columns([Span("Ada", 0.5, 0, 3)], (1,))["end"] == Column((1,), [3])
    vectors = columns([Vector(array("f", [0.5, 1.0]), 3), Vector(array("f", [2.0, 4.0]), 3)], (2,))
    assert vectors == {"embedding": Column((2, 2), [0.5, 1.0, 2.0, 4.0])}
    assert columns([Score(0.5), Score(0.25)], (2,)) == {"score": Column((2,), [0.5, 0.25])}


def test_answers_of_two_types_are_a_mistake() -> None:
    with pytest.raises(TypeError, match="Score among answers that are Vector"):
        columns([Vector(array("f", [1.0]), 1), Score(0.5)], (2,))
