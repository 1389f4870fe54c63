"""Prompts, inputs and wrong values that the requests of several protocols share."""

from __future__ import annotations

from typing import Any

PROMPT = "Today the weather is really nice and I am planning on"
OTHER = "My friend"
LOOP = "b"
"""A prompt that the model continues by repeating one word."""

FIELDS: dict[str, dict[str, str]] = {
    "classifier": {"text": "I like it"},
    "tagger": {"text": "Ada lives in London"},
    "answerer": {"question": "Who did it?", "context": "It was Ada who did it in London."},
    "filler": {"text": "I <mask> it"},
    "embedder": {"text": "I like it"},
    "reranker": {"query": "Who did it?", "text": "Ada did it"},
}
"""Inputs for the models that do not generate."""

WRONG: dict[str, list[Any]] = {
    "max_new_tokens": ["5", True, 1.5, 0, -1, 2**31],
    "temperature": ["warm", True, -0.5, 0.001, 101],
    "top_p": [0, 1.5, "0.5x", []],
    "top_k": [-2, 1.5, "3"],
    "repetition_penalty": [0, 101, {}],
    "presence_penalty": [2.5, -2.5, False],
    "frequency_penalty": [3, "much"],
    "seed": [-1, 1.5, 2**63],
    "stop": ["", [1], [["a"]], ["a"] * 17, "a" * 1025, 3],
    "return_full_text": ["yes", 1],
    "timeout": [0, -1, "soon"],
}
"""Values that generation parameters do not accept."""


def label(value: object) -> str:
    """Returns a short form of a value for the name of a request."""
    text = str(value)
    return f"{type(value).__name__}:{text if len(text) <= 24 else f'{len(text)} long'}"
