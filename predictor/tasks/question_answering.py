"""Extractive question answering: which part of a context answers a question.

V1: ``{"instances": [{"question": "Who?", "context": "Ada did."}]}`` answers
``{"predictions": [{"answer": "Ada", "score": 0.9, "start": 0, "end": 3}]}``, where `start` and
`end` are characters of the context. Parameters: ``max_answer_len`` (15 tokens), ``doc_stride``
(128: the tokens that two windows share into which a long context is cut),
``handle_impossible_answer`` (false: where true, the answer is empty if that is more probable).

V2: BYTES inputs ``question`` and ``context`` of n elements (one question may stand for all
contexts, or one context for all questions); outputs ``answer`` BYTES, ``score`` FP32, ``start`` and
``end`` INT32, all [n].

The spans are found as transformers' pipeline did up to version 4 (``question_answering.py``,
``decode_spans``); version 5 has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from predictor.engine.encoding.inputs import Batch, Text
from predictor.errors import PromptTooLong
from predictor.tasks.encoder_spec import Ask, Column, Field, Output
from predictor.tasks.parameters import boolean, integer, parse_named
from predictor.tasks.token_classification import check_offsets
from predictor.tasks.tokenization import Tokenizing, as_text

_HIDDEN = -10000.0
"""The logit of what cannot be in an answer."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the context.

    Attributes:
        answer: Its text; empty where there is no answer.
        score: Its probability.
        start: Its first character.
        end: The character after its last.
    """

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of the context as the model reads it.

    Attributes:
        offsets: Where in the context each token is.
        context: Whether each token is of the context.
    """

    offsets: Sequence[tuple[int, int]]
    context: tuple[bool, ...]


class QuestionAnswering:
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "question_answering"
    fields = (
        Field("question", example="How is the weather?"),
        Field("context"),
    )
    outputs = (
        Output("answer", "BYTES", (-1,)),
        Output("score", "FP32", (-1,)),
        Output("start", "INT32", (-1,)),
        Output("end", "INT32", (-1,)),
    )

    def __init__(self, tokenizing: Tokenizing) -> None:
        """Puts the parts together.

        Raises:
            CheckpointError: The tokenizer does not tell where tokens come from.
        """
        check_offsets(tokenizing, self.task)
        self._tokenizing = tokenizing

    def decode(self, fields: Mapping[str, str], parameters: Mapping[str, object]) -> Ask:
        """Returns what is asked."""
        checks = {
            "max_answer_len": lambda name, value: integer(name, value, 1, 4096),
            "doc_stride": lambda name, value: integer(name, value, 0, 4096),
            "handle_impossible_answer": boolean,
        }
        unsaid = {"max_answer_len": 15, "doc_stride": 128, "handle_impossible_answer": False}
        return Ask(fields, parse_named(parameters, checks, unsaid))

    def tokenize(self, ask: Ask) -> tuple[Text, ...]:
        """Returns the question with each window of the context."""
        tokenizer, most = self._tokenizing.tokenizer, self._tokenizing.max_model_len
        question, context = ask.fields["question"], ask.fields["context"]
        taken = len(tokenizer(question, "", verbose=False)["input_ids"])
        room = most - taken
        if room < 1:
            raise PromptTooLong(
                f"A question has {taken} tokens with those that belong to it; this model takes "
                f"{most} (max_model_len), its context's among them.",
                tokens=taken + 1,
                limit=most,
            )
        windows = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=most,
            stride=min(ask.parameters["doc_stride"], room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in ("input_ids", "token_type_ids") if name in windows]
        return tuple(
            as_text(
                {name: windows[name][number] for name in names},
                _Window(offsets, tuple(of == 1 for of in windows.sequence_ids(number))),
            )
            for number, offsets in enumerate(windows["offset_mapping"])
        )

    def run(self, output: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Returns each row's logits of where an answer starts and ends, of shape (2, tokens)."""
        logits = torch.stack([output.start_logits, output.end_logits], dim=1).float().cpu()
        return [logits[row, :, : len(text.ids)] for row, text in enumerate(batch.texts)]

    def encode(self, ask: Ask, texts: Sequence[Text], found: Sequence[torch.Tensor]) -> Span:
        """Returns the most probable span of all windows."""
        best, nothing = Span("", 0.0, 0, 0), 1.0
        for text, logits in zip(texts, found, strict=True):
            span, none = self._best(ask, text.about, logits)
            best = max(best, span, key=lambda span: span.score)
            nothing = min(nothing, none)
        if ask.parameters["handle_impossible_answer"] and nothing > best.score:
            return Span("", nothing, 0, 0)
        return best

    def prediction(self, answer: Span) -> object:
        """Returns an answer as a JSON value."""
        return asdict(answer)

    def columns(self, answers: Sequence[Span]) -> tuple[Column, ...]:
        """Returns answers as tensors."""
        return tuple(
            Column(
                output.name,
                output.datatype,
                (len(answers),),
                [getattr(answer, output.name) for answer in answers],
            )
            for output in self.outputs
        )

    def _best(self, ask: Ask, window: _Window, logits: torch.Tensor) -> tuple[Span, float]:
        """The best span of a window, and the probability that it has none."""
        can_be = torch.tensor(window.context)
        may_start = can_be.clone()
        may_start[0] = True  # the first token stands for "no answer"
        start, end = logits.masked_fill(~may_start, _HIDDEN).softmax(dim=-1)
        nothing = float(start[0] * end[0])
        start, end = start * can_be, end * can_be
        spans = torch.outer(start, end).triu().tril(ask.parameters["max_answer_len"] - 1)
        first, last = divmod(int(spans.argmax()), len(start))
        begins, ends = window.offsets[first][0], window.offsets[last][1]
        text = ask.fields["context"][begins:ends]
        return Span(text, float(spans[first, last]), begins, ends), nothing
