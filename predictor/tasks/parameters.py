"""Checks the parameters of tasks, given by name as JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from predictor.errors import RequestError, nearest
from predictor.sentences import quote
from predictor.tasks.request import DEFAULT_PARAMETERS, GenerationParameters

_LEAST, _MOST = 0.01, 100.0
"""Bounds of a divisor of logits: beyond them probabilities overflow to infinity and NaN."""

MAX_STOPS = 16
"""Stop strings of a request."""

_MOST_WORDS = 128
_MOST_TOKEN_IDS = 1024
_LONGEST_STOP = 1024
_LARGEST_SEED = 2**63 - 1
_MOST_BIASES = 1024
_MOST_LOGPROBS = 20


def parse_parameters(
    given: Mapping[str, Any],
    names: Collection[str] | None = None,
    defaults: GenerationParameters = DEFAULT_PARAMETERS,
) -> GenerationParameters:
    """Return checked parameters; a value of ``None`` is the same as an absent one.

    Args:
        given: Values by name.
        names: The names that are allowed; None for `NAMES`.
        defaults: Parameters that are not given.

    Raises:
        RequestError: A name is unknown (the sentence names the nearest known one), or a value has
            the wrong type or lies outside its range.
    """
    specified = {name: value for name, value in given.items() if value is not None}
    for name in specified:
        if name not in (names or NAMES):
            raise RequestError(
                f"Unknown parameter {quote(name, ellipsis='')}; {nearest(name, NAMES)}"
            )
    return replace(defaults, **{name: _CHECKS[name](name, specified[name]) for name in specified})


Check = Callable[[str, Any], Any]
"""A function from a parameter's name and value to the checked value."""


def parse_named(
    given: Mapping[str, Any], checks: Mapping[str, Check], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return checked parameters by name; a value of ``None`` is the same as an absent one.

    Args:
        given: Values by name.
        checks: The check of each parameter that is allowed.
        defaults: Parameters that are not given.

    Raises:
        RequestError: A name is unknown, or a value is wrong.
    """
    specified = {name: value for name, value in given.items() if value is not None}
    for name in specified:
        if name not in checks:
            raise RequestError(
                f"Unknown parameter {quote(name, ellipsis='')}; {nearest(name, checks)}"
            )
    return {**defaults, **{name: checks[name](name, value) for name, value in specified.items()}}


def integer(name: str, value: Any, least: int, most: int) -> int:
    """Return a value that is an integer within bounds.

    Raises:
        RequestError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer, not {_kind(value)}.")
    if not least <= value <= most:
        raise RequestError(f"{name} must be between {least} and {most}.")
    return value


def number(name: str, value: Any) -> float:
    """Return a value that is a finite number.

    Raises:
        RequestError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, not {_kind(value)}.")
    if not math.isfinite(value):
        raise RequestError(f"{name} must be a finite number.")
    return float(value)


def bounded(least: float, most: float) -> Check:
    """Return the check of a number that lies between two others, or is one of them."""

    def check(name: str, value: Any) -> float:
        given = number(name, value)
        if not least <= given <= most:
            raise RequestError(
                f"{name} must be between {least:g} and {most:g}, not {_shown(given)}."
            )
        return given

    return check


def _max_new_tokens(name: str, value: Any) -> int:
    return integer(name, value, 1, 2**31 - 1)


def _temperature(name: str, value: Any) -> float:
    given = number(name, value)
    if given != 0 and not _LEAST <= given <= _MOST:
        raise RequestError(
            f"{name} must be 0 (greedy) or between {_LEAST:g} and {_MOST:g}, not {_shown(given)}."
        )
    return given


def _top_p(name: str, value: Any) -> float:
    given = number(name, value)
    if not 0 < given <= 1:
        raise RequestError(f"{name} must be above 0 and at most 1, not {_shown(given)}.")
    return given


def _forced_bos_token_id(name: str, value: Any) -> int | str:
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_STOP:
        return value
    if isinstance(value, str):
        raise RequestError(f"{name} must be a token id or the text of a token.")
    return integer(name, value, 0, 2**31 - 1)


def _count(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**31 - 1)


def _top_k(name: str, value: Any) -> int:
    if value == -1:  # no limit, as vLLM has it
        return 0
    return _count(name, value)


def timeout(name: str, value: Any) -> float:
    """Return a value that is a time in seconds.

    Raises:
        RequestError: It is not.
    """
    given = number(name, value)
    if given <= 0:
        raise RequestError(f"{name} must be a number of seconds above 0, not {_shown(given)}.")
    return given


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > _MOST_BIASES:
        raise RequestError(f"{name} must be an object of at most {_MOST_BIASES} token ids.")
    biases = {}
    for token, bias in value.items():
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10):
            raise RequestError(f"{name} must have token ids as keys.")
        given = number(name, bias)
        if not -100 <= given <= 100:
            raise RequestError(f"{name} must have values between -100 and 100.")
        biases[int(token)] = given
    return biases


def _logprobs(name: str, value: Any) -> int:
    return integer(name, value, 0, _MOST_LOGPROBS)


def _seed(name: str, value: Any) -> int:
    return integer(name, value, 0, _LARGEST_SEED)


def _texts(most: int) -> Check:
    """Return the check of a string or a list of at most so many."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"{name} must be a string or a list of strings.")
        if len(texts) > most or any(len(text) > _LONGEST_STOP for text in texts):
            raise RequestError(
                f"{name} takes at most {most} strings of up to {_LONGEST_STOP} characters."
            )
        return tuple(text for text in texts if text)  # clients send an empty one as their default

    return check


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > _MOST_TOKEN_IDS:
        raise RequestError(f"{name} must be a list of at most {_MOST_TOKEN_IDS} token ids.")
    return tuple(integer(name, token, 0, 2**31 - 1) for token in value)


def boolean(name: str, value: Any) -> bool:
    """Return a value that is true or false.

    Raises:
        RequestError: It is neither.
    """
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, not {_kind(value)}.")
    return value


def one_of(choices: Sequence[str]) -> Check:
    """Return a check that a value is one of these strings."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise RequestError(f"{name} must be one of {', '.join(choices)}.")
        return value

    return check


def _shown(given: float) -> str:
    """Return a number with all its digits: rounded to its bound it would seem to be right."""
    return repr(given).removesuffix(".0")


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


_CHECKS: dict[str, Check] = {
    "max_new_tokens": _max_new_tokens,
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "min_p": bounded(0, 1),
    "repetition_penalty": bounded(_LEAST, _MOST),
    "seed": _seed,
    "stop": _texts(MAX_STOPS),
    "return_full_text": boolean,
    "presence_penalty": bounded(-2, 2),
    "frequency_penalty": bounded(-2, 2),
    "timeout": timeout,
    "logit_bias": _logit_bias,
    "logprobs": _logprobs,
    "forced_bos_token_id": _forced_bos_token_id,
    "min_new_tokens": _count,
    "ignore_eos": boolean,
    "stop_token_ids": _token_ids,
    "allowed_token_ids": _token_ids,
    "bad_words": _texts(_MOST_WORDS),
    "add_special_tokens": boolean,
}

ALL_NAMES = tuple(_CHECKS)
"""The names of all parameters."""

NAMES = tuple(name for name in ALL_NAMES if name not in ("logit_bias", "logprobs"))
"""Those that V1 and V2 accept."""
