"""Sampling parameters by the names that OpenAI and vLLM give them."""

from __future__ import annotations

from collections.abc import Mapping

from predictor.errors import RequestError
from predictor.tasks.parameters import ALL_NAMES, parse_parameters
from predictor.tasks.request import GenerationParameters

SHARED: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "seed": "seed",
    "stop": "stop",
    "min_tokens": "min_new_tokens",
    "ignore_eos": "ignore_eos",
    "stop_token_ids": "stop_token_ids",
    "allowed_token_ids": "allowed_token_ids",
    "bad_words": "bad_words",
    "add_special_tokens": "add_special_tokens",
}
"""Clients' keys on all routes, and their parameters' names here."""


def parameters_of(given: Mapping[str, object], names: Mapping[str, str]) -> GenerationParameters:
    """Return checked parameters.

    Args:
        given: The keys of a body.
        names: Clients' keys, and the names of parameters.

    Raises:
        RequestError: A value is wrong; the sentence names the client's key.
    """
    keys = {name: key for key, name in names.items() if key in given}
    try:
        return parse_parameters({name: given[key] for name, key in keys.items()}, ALL_NAMES)
    except RequestError as error:  # its sentence begins with the parameter's name
        name, space, rest = str(error).partition(" ")
        raise RequestError(keys.get(name, name) + space + rest) from None
