"""What a task is asked and what it answers, whatever the protocol."""

from __future__ import annotations

from dataclasses import dataclass

MOST_PROMPTS = 256
"""Prompts in one request; more are better sent as several, which others can come between."""

FINISH_REASONS = ("stop", "length")
"""``stop``: the model ended the text or a stop sequence was met; ``length``: `max_new_tokens`."""


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
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    return_full_text: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to continue, and how."""

    text: str
    parameters: GenerationParameters


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What one call asks for: at least one prompt."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """The reply to one prompt.

    Attributes:
        text: The reply, without special tokens; after the prompt if it asked for the full text.
        finish_reason: One of `FINISH_REASONS`.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens that were generated, the one that ended the reply included.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
