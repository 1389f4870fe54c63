"""The order of the lines of a batch: arithmetic over their lengths and beginnings.

Lines whose prompts begin alike go together, so that what is computed of the beginning is shared.
Groups of such lines, and the lines of a group, go by length, the longest first: rows of a forward
pass are padded to the longest, and the last rows that run, with few neighbours, are short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from predictor.tasks.request import GenerationParameters

DEFAULT_NEW_TOKENS = 256
"""Tokens that a reply counts for if its request sets no limit."""

_CHARACTERS_PER_TOKEN = 4
_PREFIX = 256
"""Characters of a prompt that tell whether others begin alike. A prefix as short as a page of the
KV cache is hardly worth a place next to others."""

_LISTS = ("prompt", "input", "documents", "texts", "inputs")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class LineShape:
    """The shape of the request in a line.

    Attributes:
        tokens: Tokens of prompt and reply, about.
        sequences: Sequences that the engine gets.
        prefix: The model and the beginning of the prompt, as a hash; None if it has no text.
        weight: Times that its bytes count among those in flight.
    """

    tokens: int
    sequences: int = 1
    prefix: int | None = None
    weight: int = 1


def shape_of(document: object, size: int) -> LineShape:
    """Return the shape of the request in a line, which may be of any form.

    Args:
        document: The JSON value of the line.
        size: Bytes of the line.
    """
    body = document.get("body") if isinstance(document, dict) else None
    if not isinstance(body, dict):
        return LineShape(size // _CHARACTERS_PER_TOKEN)
    replies = _replies(body)
    tokens = size // _CHARACTERS_PER_TOKEN + replies * _new_tokens(body)
    start = _start(body)
    prefix = None if start is None else _hash(f"{body.get('model')}\0{start}")
    return LineShape(tokens, replies * _prompts(body), prefix, _weight(body, replies))


def ordered(shapes: Sequence[LineShape]) -> list[int]:
    """Return the positions of lines in the order in which they are computed."""
    longest: dict[int, int] = {}
    for shape in shapes:
        if shape.prefix is not None:
            longest[shape.prefix] = max(shape.tokens, longest.get(shape.prefix, 0))

    def rank(position: int) -> tuple[int, int, int, int]:
        shape = shapes[position]
        if shape.prefix is None:
            return (-shape.tokens, 0, -shape.tokens, position)
        return (-longest[shape.prefix], shape.prefix, -shape.tokens, position)

    return sorted(range(len(shapes)), key=rank)


def _weight(body: Mapping[str, object], replies: int) -> int:
    """Return times that the prompts count: each reply may have their log probabilities."""
    names = ("prompt_logprobs", *(("logprobs",) if body.get("echo") is True else ()))
    counts = [value for name in names if isinstance(value := body.get(name), int)]
    if not counts:
        return 1
    return replies * GenerationParameters(prompt_logprobs=max(0, *counts)).prompt_weight


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)


def _replies(body: Mapping[str, object]) -> int:
    counts = [value for key in ("n", "best_of") if isinstance(value := body.get(key), int)]
    return max(1, *counts) if counts else 1


def _prompts(body: Mapping[str, object]) -> int:
    """Return the prompts or texts of a body; a list of numbers is one prompt as tokens."""
    lists = (body.get(name) for name in _LISTS)
    return max(
        (len(value) for value in lists if isinstance(value, list) and not _is_number(value)),
        default=1,
    )


def _is_number(values: Sequence[object]) -> bool:
    return not values or isinstance(values[0], int | float)


def _new_tokens(body: Mapping[str, object]) -> int:
    limits = (body.get(name) for name in _LIMITS)
    generates = any(name in body for name in ("messages", "prompt", "instructions"))
    default = DEFAULT_NEW_TOKENS if generates else 0
    return next((limit for limit in limits if isinstance(limit, int)), default)


def _start(body: Mapping[str, object]) -> str | None:
    """Return the beginning of a prompt: all of a system's message, or some characters."""
    prompt, messages = body.get("prompt"), body.get("messages")
    if isinstance(instructions := body.get("instructions"), str):
        return instructions
    if isinstance(prompt, str):
        return prompt[:_PREFIX]
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, dict) or not isinstance(first.get("content"), str):
        return None
    content: str = first["content"]
    return content if first.get("role") in ("system", "developer") else content[:_PREFIX]
