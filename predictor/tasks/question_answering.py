"""Extractive question answering: the part of a context that answers a question.

Parameters: ``max_answer_len`` (15 tokens), ``doc_stride`` (128: the tokens that two neighbouring
windows of a long context share), ``handle_impossible_answer`` (false; if true, the answer is empty
where that is more probable).

The spans are chosen as by transformers' pipeline up to version 4 (``question_answering.py``,
``decode_spans``); version 5 has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from predictor.engine.encoding.inputs import EncoderInput
from predictor.errors import PromptTooLong
from predictor.tasks.answers import Span
from predictor.tasks.encoder_task import Array, EncoderTaskSpec, softmax
from predictor.tasks.large_texts import one_at_a_time
from predictor.tasks.parameters import boolean, integer, parse_named
from predictor.tasks.request import EncoderInstance
from predictor.tasks.task import Field, Output
from predictor.tasks.token_classification import check_offsets
from predictor.tasks.tokenization import Tokenizing, as_text

_HIDDEN = -10000.0
"""The logit of tokens that cannot be in an answer."""

_MOST_WINDOWS = 256
"""Most windows of one context. A question that leaves a window little room makes one of every few
tokens of the context, and each is a sequence for the model. So many hold a context of some 100,000
tokens beside a short question, where a model takes 512 at a time."""


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of the context that the model takes in one sequence.

    Attributes:
        offsets: First character and the character after the last, for each token.
        context: Whether each token belongs to the context.
    """

    offsets: Sequence[tuple[int, int]]
    context: tuple[bool, ...]


class QuestionAnswering(EncoderTaskSpec):
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
        """Create the task.

        Raises:
            CheckpointError: The tokenizer gives no offsets.
        """
        check_offsets(tokenizing, self.task)
        self._tokenizing = tokenizing

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = {
            "max_answer_len": lambda name, value: integer(name, value, 1, 4096),
            "doc_stride": lambda name, value: integer(name, value, 0, 4096),
            "handle_impossible_answer": boolean,
        }
        defaults = {"max_answer_len": 15, "doc_stride": 128, "handle_impossible_answer": False}
        return EncoderInstance(fields, parse_named(parameters, checks, defaults))

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the question with each window of the context."""
        question, context = instance.fields["question"], instance.fields["context"]
        room = self._room(question)
        stride = min(instance.parameters["doc_stride"], room // 2)
        self._check_windows(context, room, stride)
        with one_at_a_time(question, context), self._tokenizing.truncating() as tokenizer:
            windows = tokenizer(
                question,
                context,
                truncation="only_second",
                max_length=self._tokenizing.max_model_len,
                stride=stride,
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

    def _room(self, question: str) -> int:
        """Return how many tokens of a context fit into a window with a question.

        Raises:
            PromptTooLong: None does.
        """
        most = self._tokenizing.max_model_len
        takes = f"this model takes {most} (max_model_len), its context's among them."
        self._tokenizing.lengths.check(most, "A question", takes, question)
        special: int = self._tokenizing.tokenizer.num_special_tokens_to_add(pair=True)
        taken = self._count(question) + special
        if taken >= most:
            raise PromptTooLong(
                f"A question has {taken} tokens with those that belong to it; {takes}",
                tokens=taken + 1,
                limit=most,
            )
        return most - taken

    def _check_windows(self, context: str, room: int, stride: int) -> None:
        """Check that a context fits into `_MOST_WINDOWS`.

        Raises:
            PromptTooLong: It does not.
        """
        fit = room + (_MOST_WINDOWS - 1) * (room - stride)
        rest = (
            f"as many fit into the {_MOST_WINDOWS} windows in which a context is read, each with "
            f"{room} beside this question, of which neighbours share {stride}."
        )
        self._tokenizing.lengths.check(fit, "A context", rest, context)
        count = self._count(context)
        if count > fit:
            raise PromptTooLong(
                f"A context has {count} tokens, more than {fit}; {rest}", tokens=count, limit=fit
            )

    def _count(self, text: str) -> int:
        """Return the number of a text's tokens without special ones."""
        with one_at_a_time(text):
            encoding = self._tokenizing.tokenizer(text, add_special_tokens=False, verbose=False)
        return len(encoding["input_ids"])

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[Array],
    ) -> Span:
        """Return the most probable span of all windows."""
        best, nothing = Span("", 0.0, 0, 0), 1.0
        for text, logits in zip(texts, results, strict=True):
            span, none = self._best(instance, text.about, logits)
            best = max(best, span, key=lambda span: span.score)
            nothing = min(nothing, none)
        if instance.parameters["handle_impossible_answer"] and nothing > best.score:
            return Span("", nothing, 0, 0)
        return best

    def _best(
        self, instance: EncoderInstance, window: _Window, logits: Array
    ) -> tuple[Span, float]:
        """Return the best span of a window, and the probability that it has none."""
        can_be = np.array(window.context)
        may_start = can_be.copy()
        may_start[0] = True  # the first token stands for "no answer"
        start, end = softmax(np.where(may_start, logits, np.float32(_HIDDEN)))
        nothing = float(start[0] * end[0])
        start, end = start * can_be, end * can_be
        longest = instance.parameters["max_answer_len"]
        spans = np.tril(np.triu(np.outer(start, end)), longest - 1)
        first, last = divmod(int(spans.argmax()), len(start))
        begins, ends = window.offsets[first][0], window.offsets[last][1]
        text = instance.fields["context"][begins:ends]
        return Span(text, float(spans[first, last]), begins, ends), nothing
