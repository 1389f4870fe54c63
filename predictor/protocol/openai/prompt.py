"""OpenAI's prompts of completions: texts and token ids."""

from __future__ import annotations

from array import array
from typing import cast

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count, kind, require_type
from predictor.tasks.request import PromptText

_LARGEST_ID = 2**31 - 1


def prompt_texts(prompt: object) -> list[PromptText]:
    """Return the prompts of a request for completions.

    Args:
        prompt: A string, a list of strings, a list of token ids, or a list of such lists.

    Raises:
        RequestError: It is none of these, or is empty.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise RequestError(f"prompt must be a string or a list, not {kind(prompt)}.")
    if not prompt:
        raise RequestError("prompt is empty; give at least one.")
    if isinstance(prompt[0], int):
        return [_token_ids(prompt, "prompt")]
    check_count(len(prompt))
    if isinstance(prompt[0], list):
        names = [f"prompt[{number}]" for number in range(len(prompt))]
        return [
            _token_ids(require_type(ids, list, name), name)
            for ids, name in zip(prompt, names, strict=True)
        ]
    return [require_type(text, str, f"prompt[{number}]") for number, text in enumerate(prompt)]


def _token_ids(ids: list[object], where: str) -> array[int]:
    if not set(map(type, ids)) <= {int}:  # hundreds of thousands are checked in milliseconds
        for number, token in enumerate(ids):
            require_type(token, int, f"{where}[{number}]")
    tokens = cast("list[int]", ids)
    try:
        return array("i", tokens)
    except OverflowError:  # such an id is in no vocabulary, as little as -1 is
        return array("i", (token if 0 <= token <= _LARGEST_ID else -1 for token in tokens))
