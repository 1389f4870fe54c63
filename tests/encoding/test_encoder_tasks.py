"""Every encoder task gives what transformers gives for the same text alone, in fp32.

Resident, with blocks on disk, and batched with texts of other lengths.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartForSequenceClassification,
    T5EncoderModel,
    T5ForSequenceClassification,
    pipeline,
)

from predictor.checkpoint.task_detection import factory_of
from predictor.errors import PromptTooLong, RequestError
from predictor.tasks.task import RawInstance
from tests import serving
from tests.encoding.checkpoints import CONFIGS, encoder_decoder_config, reading_tokenizer
from tests.encoding.conftest import Make
from tests.serving import on_disk

CLOSE = 1e-5
TEXTS = (
    "no",
    "I like it",
    "a text that is so much longer than all the others that these are padded to it",
    "one of middle size, more or less",
)
MODELS: dict[str, Sequence[str]] = {
    "sequence_classification": tuple(CONFIGS),
    "token_classification": ("bert", "distilbert", "roberta", "deberta", "modernbert", "gpt2"),
    "question_answering": ("bert", "distilbert", "roberta", "deberta", "modernbert"),
    "fill_mask": ("bert", "distilbert", "roberta", "deberta", "modernbert"),
    "text_embedding": ("bert", "distilbert", "roberta", "modernbert", "llama"),
    "rerank": ("bert", "roberta", "modernbert"),
}
CASES = [(task, architecture) for task, names in MODELS.items() for architecture in names]


def bring_up(folder: Path, task: str, **flags: Any) -> serving.Up:
    return serving.bring_up(folder, task=task, **flags)


def ask(up: serving.Up, *texts: Mapping[str, str], **parameters: Any) -> tuple[Any, ...]:
    """Asks all at one time."""
    task: Any = up.task
    instances = (RawInstance(fields) for fields in texts)
    return asyncio.run(task.prepare(task.spec.request(parameters, instances)).complete())


class Reference:
    """The model as transformers runs it, one text at a time."""

    def __init__(self, folder: Path, task: str, architecture: str) -> None:
        self.task = task
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = factory_of(task, CONFIGS[architecture]).from_pretrained(folder).eval()

    def output(self, *texts: str) -> Any:
        given = self.tokenizer(*texts, return_tensors="pt")
        with torch.inference_mode():
            return (
                self.model(**given)
                if self.takes_types
                else self.model(
                    input_ids=given["input_ids"], attention_mask=given["attention_mask"]
                )
            )

    @property
    def takes_types(self) -> bool:
        return "distilbert" not in self.model.config.model_type and (
            self.model.config.model_type != "modernbert"
        )

    def pipe(self, text: str, **options: Any) -> Any:
        made = pipeline(
            self.task.replace("_", "-"), model=self.model, tokenizer=self.tokenizer, device="cpu"
        )
        return made(text, **options)


def check(task: str, up: serving.Up, reference: Reference) -> None:
    """Asks for all texts at one time, and compares each with what it gives alone."""
    {
        "sequence_classification": check_classes,
        "token_classification": check_tokens,
        "question_answering": check_questions,
        "fill_mask": check_masks,
        "text_embedding": check_vectors,
        "rerank": check_pairs,
    }[task](up, reference)


def check_classes(up: serving.Up, reference: Reference) -> None:
    answers = ask(
        up, *({"text": text} for text in TEXTS), return_raw_logits=True, return_probabilities=True
    )
    for text, answer in zip(TEXTS, answers, strict=True):
        logits = reference.output(text).logits[0]
        torch.testing.assert_close(torch.tensor(answer.logits), logits, atol=CLOSE, rtol=0)
        scores = logits.softmax(0)
        assert answer.probabilities == pytest.approx(scores.tolist(), abs=CLOSE)
        assert answer.label == reference.model.config.id2label[int(scores.argmax())]
        assert answer.score == pytest.approx(float(scores.max()), abs=CLOSE)


def check_tokens(up: serving.Up, reference: Reference) -> None:
    for strategy in ("none", "simple"):
        answers = ask(up, *({"text": text} for text in TEXTS), aggregation_strategy=strategy)
        for text, answer in zip(TEXTS, answers, strict=True):
            logits = reference.output(text).logits[0]
            with_ends = reference.tokenizer.cls_token is not None
            inner = logits[1:-1] if with_ends else logits
            scores = inner.softmax(-1).max(-1)
            labels = [reference.model.config.id2label[int(index)] for index in scores.indices]
            if strategy == "none":
                assert [entity.label for entity in answer.entities] == labels
                result = [entity.score for entity in answer.entities]
                assert result == pytest.approx(scores.values.tolist(), abs=CLOSE)
                assert [text[e.start : e.end] for e in answer.entities] == list(text)
            else:  # neighbours of one label are one entity
                changes = [a != b for a, b in itertools.pairwise(labels)]
                assert len(answer.entities) == 1 + sum(changes)
                assert "".join(text[e.start : e.end] for e in answer.entities) == text


def check_questions(up: serving.Up, reference: Reference) -> None:
    questions = [("who?", text) for text in TEXTS]
    answers = ask(up, *({"question": q, "context": c} for q, c in questions), max_answer_len=4)
    for (question, context), answer in zip(questions, answers, strict=True):
        output = reference.output(question, context)
        begin = len(reference.tokenizer(question)["input_ids"])  # <s> question </s> context </s>
        hidden = torch.full_like(output.start_logits[0], -10000.0)
        hidden[0] = hidden[begin : begin + len(context)] = 0
        start, end = (
            (logits[0] + hidden).softmax(-1)[begin : begin + len(context)]
            for logits in (output.start_logits, output.end_logits)
        )
        score, first, last = max(
            (float(start[i] * end[j]), i, j)
            for i in range(len(context))
            for j in range(i, min(i + 4, len(context)))
        )
        assert answer.score == pytest.approx(score, abs=CLOSE)
        assert (answer.start, answer.end) == (first, last + 1)
        assert answer.answer == context[first : last + 1]


def check_masks(up: serving.Up, reference: Reference) -> None:
    texts = [f"{text}<mask>" for text in TEXTS] + ["two <mask> of <mask> them"]
    answers = ask(up, *({"text": text} for text in texts), top_k=3)
    for text, answer in zip(texts, answers, strict=True):
        ids = reference.tokenizer(text)["input_ids"]
        logits = reference.output(text).logits[0]
        masks = [place for place, token in enumerate(ids) if token == 4]
        assert len(answer.masks) == len(masks) > 0
        for place, fillings in zip(masks, answer.masks, strict=True):
            best = logits[place].softmax(-1).topk(3)
            assert [filling.token_id for filling in fillings] == best.indices.tolist()
            result = [filling.score for filling in fillings]
            assert result == pytest.approx(best.values.tolist(), abs=CLOSE)
            if len(masks) == 1:
                token = reference.tokenizer.decode([fillings[0].token_id])
                assert fillings[0].sequence == text.replace("<mask>", token)


def check_vectors(up: serving.Up, reference: Reference) -> None:
    answers = ask(up, *({"text": text} for text in TEXTS))
    for text, answer in zip(TEXTS, answers, strict=True):
        mean = reference.output(text).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(
            torch.tensor(answer.values), mean / mean.norm(), atol=CLOSE, rtol=0
        )


def check_pairs(up: serving.Up, reference: Reference) -> None:
    answers = ask(up, *({"query": "who is it?", "text": text} for text in TEXTS))
    for text, answer in zip(TEXTS, answers, strict=True):
        logit = reference.output("who is it?", text).logits[0, 0]
        assert answer.score == pytest.approx(float(logit.sigmoid()), abs=CLOSE)


@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_batched_answers_are_those_of_each_text_alone(
    make: Make, task: str, architecture: str
) -> None:
    folder = make(task, architecture)
    check(task, bring_up(folder, task), Reference(folder, task, architecture))


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        ("sequence_classification", "bert"),
        ("sequence_classification", "llama"),
        ("token_classification", "deberta"),
        ("token_classification", "roberta"),
        ("question_answering", "distilbert"),
        ("question_answering", "bert"),
        ("fill_mask", "modernbert"),
        ("fill_mask", "roberta"),
        ("text_embedding", "bert"),
        ("text_embedding", "llama"),
        ("rerank", "roberta"),
        ("rerank", "bert"),
    ],
)
def test_so_they_are_with_blocks_on_disk(
    make: Make, tmp_path: Path, task: str, architecture: str
) -> None:
    folder = make(task, architecture)
    device_map = on_disk(bring_up(folder, task))
    up = bring_up(
        folder, task, device_map=device_map, offload_folder=str(tmp_path), offload_store="always"
    )
    assert up.sources == {"store"}
    check(task, up, Reference(folder, task, architecture))


@pytest.mark.parametrize("placement", ["resident", "disk"])
@pytest.mark.parametrize("kind", [BartForSequenceClassification, T5ForSequenceClassification])
def test_heads_that_look_for_the_end_of_a_text_are_read(
    tmp_path: Path, kind: Any, placement: str
) -> None:
    config = encoder_decoder_config("bart" if kind is BartForSequenceClassification else "t5")
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = reading_tokenizer(with_ends=True)
    tokenizer.save_pretrained(tmp_path)
    up = serving.bring_up(tmp_path)
    if placement == "disk":
        up = serving.bring_up(tmp_path, device_map=on_disk(up))
    result = ask(up, *({"text": text} for text in TEXTS), return_raw_logits=True)
    for text, one in zip(TEXTS, result, strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([tokenizer(text).input_ids])).logits[0]
        torch.testing.assert_close(torch.tensor(one.logits), expected, atol=CLOSE, rtol=0)


def test_an_encoder_alone_gives_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = T5EncoderModel(encoder_decoder_config("t5")).eval()
    model.save_pretrained(tmp_path)
    tokenizer = reading_tokenizer(with_ends=True)
    tokenizer.save_pretrained(tmp_path)
    up = serving.bring_up(tmp_path)
    assert up.prepared.checkpoint.task == "text_embedding"
    (result,) = ask(up, {"text": "a text"}, normalize=False)
    with torch.no_grad():
        states = model(input_ids=torch.tensor([tokenizer("a text").input_ids])).last_hidden_state
    expected = states[0].mean(dim=0)
    torch.testing.assert_close(torch.tensor(result.values), expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("architecture", ["bert", "deberta"])
def test_entities_are_those_of_transformers_pipeline(make: Make, architecture: str) -> None:
    folder = make("token_classification", architecture)
    up = bring_up(folder, "token_classification")
    reference = Reference(folder, "token_classification", architecture)
    (answer,) = ask(up, {"text": TEXTS[2]})
    expected = reference.pipe(TEXTS[2], aggregation_strategy="simple")
    assert [(e.label, e.word, e.start, e.end) for e in answer.entities] == [
        (e["entity_group"], e["word"], e["start"], e["end"]) for e in expected
    ]
    scores = [float(entity["score"]) for entity in expected]
    assert [entity.score for entity in answer.entities] == pytest.approx(scores, abs=CLOSE)


def test_a_long_context_is_read_in_windows(make: Make) -> None:
    folder = make("question_answering", "bert")
    context = "".join(f"sentence {n} says nothing. " for n in range(30))
    up = bring_up(folder, "question_answering", max_model_len=64)
    task: Any = up.task
    instance = task.spec.decode({"question": "what?", "context": context}, {"doc_stride": 16})
    texts = task.spec.tokenize(instance)
    assert len(texts) > 10
    assert all(len(text.ids) <= 64 for text in texts)
    read = {place for text in texts for place in text.about.offsets}
    assert {place for place, _ in read} >= set(range(len(context)))  # nothing is left out
    (answer,) = ask(up, {"question": "what?", "context": context}, doc_stride=16)
    assert context[answer.start : answer.end] == answer.answer != ""


def test_what_is_too_long_is_refused_or_cut(make: Make) -> None:
    up = bring_up(make("sequence_classification", "bert"), "sequence_classification")
    with pytest.raises(PromptTooLong, match=r"1000 characters .* at most 128.*truncate"):
        ask(up, {"text": "x" * 1000})
    cut, whole = ask(up, {"text": "x" * 1000}, truncate=True), ask(up, {"text": "x" * 126})
    assert cut == whole


def test_a_question_without_room_for_a_context_is_refused(make: Make) -> None:
    up = bring_up(make("question_answering", "bert"), "question_answering")
    with pytest.raises(PromptTooLong, match="A question has"):
        ask(up, {"question": "x" * 200, "context": "y"})


def test_a_text_without_a_mask_is_refused_with_its_name(make: Make) -> None:
    with pytest.raises(RequestError, match="no mask; this model's is '<mask>'"):
        ask(bring_up(make("fill_mask", "bert"), "fill_mask"), {"text": "nothing here"})


def test_every_token_is_told_with_its_place_on_request(make: Make) -> None:
    up = bring_up(
        make("token_classification", "bert"), "token_classification", return_offsets_mapping=True
    )
    (answer,) = ask(up, {"text": "O is a label too"})
    assert [(e.start, e.end) for e in answer.entities] == [(n, n + 1) for n in range(16)]


def test_the_limits_of_positions_are_the_models_own(make: Make) -> None:
    roberta = bring_up(
        make("fill_mask", "roberta"), "fill_mask", max_model_len=None
    ).prepared.footprint
    assert roberta.max_model_len == 256  # of 260 positions, those after the padding's
