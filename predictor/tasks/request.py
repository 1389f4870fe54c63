"""What a task is asked and what it answers, whatever the protocol."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field

from predictor.engine.generation.sampling_params import FinishReason

MOST_PROMPTS = 256
"""Prompts in one request; more are better sent as several, which others can come between."""


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """How a reply is generated; ``None`` leaves the choice to the model's generation config.

    Attributes:
        max_new_tokens: Most tokens of the reply, at least 1.
        temperature: 0 is greedy decoding; above 0 it divides the logits before sampling.
        top_p: Sample from the smallest set of tokens with this probability mass, in (0, 1].
        top_k: Sample from this many most probable tokens; 0 is no limit.
        repetition_penalty: Divides the logits of tokens already seen; 1 is none.
        seed: Makes a sampled reply repeatable.
        stop: The reply ends before the first of these strings that appears in it.
        return_full_text: Whether the reply begins with the prompt.
        presence_penalty: Is taken from the logits of tokens that are in the reply.
        frequency_penalty: Is taken as often as a token is in the reply.
        logit_bias: Is added to the logits of these token ids.
        logprobs: How many alternatives are told with each token; None tells of no token.
        timeout: Seconds after which the whole request is given up.
        default_new_tokens: `max_new_tokens` where that is not said; fewer where room is less.
        prompt_limit: Tokens that a longer prompt is cut to; None cuts none.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    return_full_text: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    timeout: float | None = None
    default_new_tokens: int | None = None
    prompt_limit: int | None = None


UNSAID = GenerationParameters()
"""Everything is left to the model's generation config."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


_SHORT = 2048
"""Characters that become tokens in less time than another thread takes to begin: under a
millisecond, beside several in which threads wait for each other's turn."""

_EACH = 128
"""Characters that a text counts for besides its own."""


def become_tokens_soon(lengths: Iterable[float]) -> bool:
    """Returns whether texts of so many characters become tokens in a moment."""
    return sum(length + _EACH for length in lengths) <= _SHORT


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue, and how.

    Attributes:
        text: A text, token ids, or the turns of a conversation for the model's chat template.
        parameters: How.
    """

    text: str | tuple[int, ...] | tuple[Message, ...]
    parameters: GenerationParameters


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What one call asks for: at least one prompt."""

    prompts: tuple[Prompt, ...]

    @property
    def timeout(self) -> float | None:
        """The least of the prompts' own timeouts."""
        said = [prompt.parameters.timeout for prompt in self.prompts]
        return min((seconds for seconds in said if seconds is not None), default=None)

    @property
    def is_short(self) -> bool:
        """Whether it becomes tokens in a moment; a chat template takes what time it likes."""
        return become_tokens_soon(map(_characters, self.prompts))


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token as text, with its log probability.

    Attributes:
        id: Its number in the vocabulary.
        text: What it says by itself.
        logprob: Natural logarithm of its probability.
        special: Whether it is a special token, which is in no reply.
        top: The most probable tokens in its place, as text and log probability, best first.
    """

    id: int
    text: str
    logprob: float
    special: bool = False
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The reply to one prompt.

    Attributes:
        text: The reply, without special tokens; after the prompt if it asked for the full text.
        ending: Why it ended.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens that were generated, the one that ended the reply included.
        tokens: The generated tokens, where log probabilities were asked for.
    """

    text: str
    ending: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[ScoredToken, ...] = ()

    @property
    def finish_reason(self) -> str:
        """``"stop"`` where the model or a stop sequence ended the reply, else ``"length"``."""
        return finish_reason(self.ending)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a reply that is streamed.

    Attributes:
        index: Which of the request's prompts it replies to.
        text: New text; never half a character, nor what may become a stop sequence.
        ending: Why the reply ended, in its last piece; None before.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated so far.
        tokens: The new tokens, where log probabilities were asked for.
    """

    index: int
    text: str
    ending: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """Replies that come.

    Attributes:
        pieces: Their pieces; closing them gives the places up.
        deadline: When they are given up, on the event loop's clock.
    """

    pieces: AsyncIterator[Piece]
    deadline: float


def _characters(prompt: Prompt) -> float:
    if isinstance(prompt.text, str) or not any(isinstance(t, Message) for t in prompt.text):
        return len(prompt.text)
    return math.inf


def finish_reason(ending: FinishReason) -> str:
    """Returns an ending as V1, V2 and OpenAI say it."""
    return "length" if ending == "length" else "stop"
