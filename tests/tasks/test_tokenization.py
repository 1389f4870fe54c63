"""Texts as tokens in several threads, and the windows of a context."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from predictor.errors import PromptTooLong
from predictor.tasks.large_texts import LARGE, batches, one_at_a_time
from predictor.tasks.question_answering import QuestionAnswering
from predictor.tasks.task import RawInstance
from predictor.tasks.tokenization import Tokenizing
from tests.encoding.checkpoints import reading_tokenizer

MOST = 32


def tokenizing(most: int = MOST) -> Tokenizing:
    return Tokenizing(reading_tokenizer(with_ends=True), most)


def test_threads_that_cut_texts_and_others_do_not_disturb_each_other() -> None:
    shared = tokenizing(2048)
    answering = QuestionAnswering(shared)
    instance = answering.decode({"question": "who?", "context": "y" * 4000}, {})

    def whole(_: int) -> int:
        return len(shared.text("x" * 2000).ids)

    def cut(_: int) -> int:
        return len(shared.text("x" * 3000, cut=2048).ids)

    def windows(_: int) -> int:
        return max(len(text.ids) for text in answering.tokenize(instance))

    with ThreadPoolExecutor(6) as pool:
        calls = itertools.product(range(60), (whole, cut, windows))
        counts = [(call, pool.submit(call, number)) for number, call in calls]
        for call, count in counts:
            assert count.result() == (2002 if call is whole else 2048)


def test_a_tokenizer_that_cuts_is_copied_at_its_first_use_alone() -> None:
    shared = tokenizing()
    shared.text("x")
    assert not shared._copies
    for _ in range(3):
        shared.text("x" * 99, cut=MOST)
    assert len(shared._copies) == 1
    assert shared.tokenizer._tokenizer.truncation is None


def tokenize(question: str, context: str, most: int = MOST, **parameters: object) -> Any:
    task = QuestionAnswering(tokenizing(most))
    return task.tokenize(task.decode({"question": question, "context": context}, parameters))


def test_no_window_is_longer_than_the_model_takes() -> None:
    for length in range(MOST - 3):
        texts = tokenize("q" * length, "c" * 40, doc_stride=4)
        assert max(len(text.ids) for text in texts) <= MOST
    with pytest.raises(PromptTooLong, match=r"^A question has 32 tokens .* takes 32 "):
        tokenize("q" * (MOST - 3), "c")


@pytest.mark.parametrize(("question", "stride"), [(10, 4), (10, 128), (28, 0), (26, 1)])
def test_a_context_in_more_windows_than_a_bound_is_refused(question: int, stride: int) -> None:
    room = MOST - 3 - question
    fit = room + 255 * (room - min(stride, room // 2))
    assert len(tokenize("q" * question, "c" * fit, doc_stride=stride)) == 256
    with pytest.raises(PromptTooLong, match=rf"^A context has {fit + 1} tokens.* 256 windows"):
        tokenize("q" * question, "c" * (fit + 1), doc_stride=stride)


def test_long_questions_and_contexts_are_refused_before_they_are_tokenised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = QuestionAnswering(tokenizing())
    tokenised = []
    monkeypatch.setattr(
        task, "_count", lambda text: tokenised.append(text) or len(text), raising=False
    )
    for question, context in (("q" * 2**20, "c"), ("q", "c" * 2**20)):
        with pytest.raises(PromptTooLong, match=r"of 1048576 characters"):
            task.tokenize(task.decode({"question": question, "context": context}, {}))
    assert tokenised == ["q"]


def test_one_large_text_is_tokenised_at_a_time() -> None:
    begun, end, small = threading.Event(), threading.Event(), threading.Event()
    order = []

    def first() -> None:
        with one_at_a_time("x" * LARGE, "x"):
            begun.set()
            end.wait(60)
            order.append("first")

    def second() -> None:
        begun.wait(60)
        with one_at_a_time("x" * LARGE):
            small.set()
        with one_at_a_time("x" * (LARGE + 1)):
            order.append("second")

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    assert small.wait(60)  # a small text does not wait
    assert order == []
    end.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "second"]


@pytest.mark.parametrize("texts", [["one"], ["", "two words", "a" * 40], ["x" * 70_000, "z"]])
def test_texts_are_tokenised_together_as_they_are_one_by_one(texts: list[str]) -> None:
    shared = tokenizing(100_000)
    assert shared.texts(texts) == [shared.text(text) for text in texts]


def test_texts_that_are_too_long_are_refused_among_others() -> None:
    for text in ("a " * 20, "a" * 10_000):
        with pytest.raises(PromptTooLong, match="A text "):
            tokenizing(8).texts(["short", text])


def test_large_texts_are_tokenised_alone() -> None:
    texts = ["a" * 10, "b" * LARGE, "c" * (LARGE - 1), "d", "e"]
    assert [len(batch) for batch in batches(texts)] == [1, 1, 2, 1]
    assert [text for batch in batches(texts) for text in batch] == texts


def test_parameters_that_instances_share_are_checked_once() -> None:
    checks: list[object] = []

    class Counting(QuestionAnswering):
        def decode(self, fields: Any, parameters: Any) -> Any:
            checks.append(parameters)
            return super().decode(fields, parameters)

    texts = {"question": "who?", "context": "a"}
    given = [{}, {}, {"max_answer_len": 7}, {}]
    spec = Counting(tokenizing())
    request = spec.request({}, [RawInstance(texts, own) for own in given])
    assert len(checks) == 2
    lengths = [each.parameters["max_answer_len"] for each in request.instances]
    assert lengths[2] == 7
    assert len({*lengths[:2], lengths[3]}) == 1


def test_special_tokens_can_be_left_out_whole_cut_and_in_batches() -> None:
    plain = Tokenizing(reading_tokenizer(with_ends=True), MOST, add_special_tokens=False)
    added = len(tokenizing().text("abc").ids) - len(plain.text("abc").ids)
    assert added == 2
    assert len(plain.text("abc", cut=2).ids) == 2
    assert plain.texts(["abc"])[0].ids == plain.text("abc").ids
