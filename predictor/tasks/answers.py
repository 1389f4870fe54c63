"""Everything that a task may answer; the protocols turn it into JSON and tensors.

`Answer` is the closed union of the answers to one instance. A streamed reply comes in `Piece`s.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from predictor.engine.generation.sampling_params import FinishReason
from predictor.tasks.prompt_scores import ScoredPrompt
from predictor.tasks.tool_calls import CallPart, ToolCall

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token as text, with its log probability.

    Attributes:
        id: The token id.
        text: The token decoded by itself.
        logprob: Natural logarithm of its probability.
        special: Whether it is a special token; no reply's text contains those.
        top: The most probable tokens at its position, as text and log probability, best first.
        top_ids: The token ids of those.
        top_special: Which of those are special tokens.
    """

    id: int
    text: str
    logprob: float
    special: bool = False
    top: tuple[tuple[str, float], ...] = ()
    top_ids: tuple[int, ...] = ()
    top_special: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The reply to one prompt.

    Attributes:
        text: The reply, without special tokens; it begins with the prompt if that was requested.
        ending: Why it ended.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens that were generated, the one that ended the reply included.
        tokens: The generated tokens, if log probabilities were requested.
        reasoning: What the model wrote before the reply, which is no part of its text.
        calls: The calls of functions that it makes.
        cached_tokens: Tokens of the prompt that the prefix cache had.
        reasoning_tokens: Tokens of the reasoning.
        stop: The stop sequence that ended it; empty if none did.
        queue_seconds: Seconds until its first forward pass; None if they are unknown.
        prompt: The tokens of the prompt, if their log probabilities were requested.
    """

    text: str
    ending: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[ScoredToken, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    stop: str = ""
    queue_seconds: float | None = None
    prompt: ScoredPrompt | None = None

    @property
    def finish_reason(self) -> str:
        """``"stop"`` if the model or a stop sequence ended the reply, else ``"length"``."""
        return finish_reason(self.ending)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a streamed reply.

    Attributes:
        index: Index of the prompt in the request.
        text: New text; never half a character, nor the possible beginning of a stop sequence.
        ending: Why the reply ended, in its last piece; None before.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated so far.
        tokens: The new tokens, if log probabilities were requested.
        reasoning: New text of the model's reasoning.
        calls: New parts of calls of functions.
        cached_tokens: Tokens of the prompt that the prefix cache had.
        reasoning_tokens: Tokens of the reasoning, in its last piece.
        stop: The stop sequence that ended it, in its last piece; empty if none did.
        queue_seconds: Seconds until its first forward pass; None if they are unknown.
        prompt: The tokens of the prompt, in the first piece, if they were scored.
    """

    index: int
    text: str
    ending: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[ScoredToken, ...] = ()
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    stop: str = ""
    queue_seconds: float | None = None
    prompt: ScoredPrompt | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """The replies to a request, as they are generated.

    Attributes:
        pieces: Their pieces; closing the generator cancels the request.
        deadline: When the request is cancelled, on the event loop's clock, in seconds.
        release: Gives back what the request holds; later calls do nothing.
    """

    pieces: AsyncGenerator[Piece, None]
    deadline: float
    release: Callable[[], None]

    async def close(self) -> None:
        """Cancel the request, even if no piece of it was read: a generator would not know."""
        try:
            await self.pieces.aclose()
        finally:
            self.release()


@dataclass(frozen=True, slots=True)
class Classes:
    """The class of a text or a pair of texts.

    Attributes:
        label: The most probable label.
        score: Its probability.
        labels: All labels of the model, in the order of its logits.
        probabilities: Of all labels; None if they were not requested.
        logits: Of all labels; None if they were not requested.
    """

    label: str
    score: float
    labels: tuple[str, ...]
    probabilities: tuple[float, ...] | None
    logits: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled part of a text.

    Attributes:
        label: Its label, without the prefix that marks the beginning of an entity.
        score: Its probability.
        word: Its text, decoded from the tokens.
        start: Its first character.
        end: The character after its last.
    """

    label: str
    score: float
    word: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Entities:
    """The entities of a text, in its order.

    Attributes:
        entities: The entities.
        token_labels: The index of the most probable label of each token, special ones included.
    """

    entities: tuple[Entity, ...]
    token_labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a context that answers a question.

    Attributes:
        answer: Its text; empty if there is no answer.
        score: Its probability.
        start: Its first character.
        end: The character after its last.
    """

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Filling:
    """A token that may replace a mask.

    Attributes:
        token: Its text.
        token_id: Its id in the vocabulary.
        score: Its probability.
        sequence: The text with this token in place of the mask; other masks stay.
    """

    token: str
    token_id: int
    score: float
    sequence: str


@dataclass(frozen=True, slots=True)
class Masks:
    """For each mask of a text its most probable fillings, best first."""

    masks: tuple[tuple[Filling, ...], ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """The embedding of a text.

    Attributes:
        values: Its elements in float32, as one object: answers may go to another process.
        tokens: Tokens of the text.
    """

    values: array[float]
    tokens: int

    def __reduce__(self) -> tuple[type[Vector], tuple[array[float], int]]:
        """Return how it is pickled: a dataclass with slots takes far longer by itself."""
        return Vector, (self.values, self.tokens)


@dataclass(frozen=True, slots=True)
class Score:
    """How well a text answers a query: a probability, or the raw logit if that was requested."""

    score: float


Answer = Completion | Classes | Entities | Span | Masks | Vector | Score
"""The answer to one instance of a request."""


_BASE_SIZE, _NUMBER_SIZE, _TOKEN_SIZE = 128, 20, 256

_ELEMENT_SIZE = 4
"""Bytes of text that are written in the time of one element of a vector, which is 0.1 µs."""


def json_size(answers: Sequence[Answer]) -> int:
    """Return the bytes of answers as JSON, about: enough to tell large answers from small ones."""
    return sum(map(_json_size, answers))


def _json_size(answer: Answer) -> int:
    if isinstance(answer, Vector):
        return _ELEMENT_SIZE * len(answer.values)
    if isinstance(answer, Completion):
        tokens = len(answer.tokens) + (0 if answer.prompt is None else len(answer.prompt))
        return _BASE_SIZE + len(answer.text) + _TOKEN_SIZE * tokens
    if isinstance(answer, Classes):
        return _BASE_SIZE + _NUMBER_SIZE * len(answer.labels)
    if isinstance(answer, Entities):
        return _BASE_SIZE * len(answer.entities)
    if isinstance(answer, Masks):
        return sum(len(filling.sequence) for fillings in answer.masks for filling in fillings)
    return _BASE_SIZE


def of_type(answers: Sequence[Answer], kind: type[_T]) -> tuple[_T, ...]:
    """Return the answers of a request to a task that gives only this type.

    Raises:
        TypeError: One is of another type, which is a mistake in the task.
    """
    narrowed = tuple(answer for answer in answers if isinstance(answer, kind))
    others = [type(answer).__name__ for answer in answers if not isinstance(answer, kind)]
    if others:
        raise TypeError(f"{others[0]} among answers that are {kind.__name__}")
    return narrowed


def finish_reason(ending: FinishReason) -> str:
    """Return the finish reason in the words of V1, V2 and OpenAI."""
    return "length" if ending == "length" else "stop"
