"""Decodes OpenAI's requests for completions and chat completions.

Every key of OpenAI's API is in one of three groups: supported keys, keys that would change the
answer and are refused by name, and keys that change nothing here and are ignored. A key with the
value ``null`` is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    check_count,
    check_keys,
    optional,
    parse_document,
    require_type,
)
from predictor.protocol.openai import structured
from predictor.protocol.openai.prompt import conversation, prompt_texts
from predictor.tasks.parameters import ALL_NAMES, parse_parameters
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt, PromptText

_MOST_COMPLETION_LOGPROBS = 5
_DEFAULT_COMPLETION_TOKENS = 16
_SEEDS = 2**63

_SHARED = {
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
}
_COMPLETION_PARAMETERS = _SHARED | {
    "max_tokens": "max_new_tokens",
    "logprobs": "logprobs",
    "echo": "return_full_text",
    "forced_bos_token_id": "forced_bos_token_id",
}
_CHAT_PARAMETERS = _SHARED | {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}
"""Clients' keys and their parameters' names here."""

_ASIDE = ("model", "n", "stream", "stream_options", *structured.KEYS)

COMPLETION_KEYS = ("prompt", *_COMPLETION_PARAMETERS, *_ASIDE)
"""Keys of a request for completions that are supported."""

CHAT_KEYS = ("messages", *_CHAT_PARAMETERS, "logprobs", "top_logprobs", *_ASIDE)
"""Keys of a request for chat completions that are supported."""

REFUSED: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "moderation": (),
}
"""Keys that would change the answer, and the values of each that change nothing."""

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "verbosity",
    }
    | structured.IGNORED
)
"""Keys that change nothing here."""


@dataclass(frozen=True, slots=True)
class Call:
    """A decoded request and everything that its response depends on.

    Attributes:
        request: `n` prompts in a row for each prompt of the client.
        n: Replies to each prompt.
        stream: Whether the replies are streamed.
        include_usage: Whether a stream ends with its usage.
    """

    request: GenerationRequest
    n: int
    stream: bool
    include_usage: bool


def model_name(document: Mapping[str, object]) -> str:
    """Return the name of the model in a body.

    Raises:
        RequestError: It names none.
    """
    if document.get("model") is None:
        raise RequestError("The body has no 'model'.")
    return require_type(document["model"], str, "model")


def decode_body(
    body: bytes, decode: Callable[[Mapping[str, object]], Call]
) -> tuple[str, Call | RequestError]:
    """Return the name of the model in a body, and the request or what is wrong with it.

    Args:
        body: The body.
        decode: `decode_completion` or `decode_chat`.

    Raises:
        RequestError: The body is no JSON object, or names no model.
    """
    document = parse_document(body)
    name = model_name(document)
    try:
        return name, decode(document)
    except RequestError as error:
        return name, error


def decode_completion(document: Mapping[str, object]) -> Call:
    """Return the request in a body of ``/completions``.

    Raises:
        RequestError: The body is not of OpenAI's form, or has a key that is not supported.
    """
    given = _given(document, COMPLETION_KEYS, "prompt")
    if "logprobs" in given:
        _integer(given, "logprobs", 0, _MOST_COMPLETION_LOGPROBS)
        if given.get("echo") is True:
            raise RequestError("echo together with logprobs is not supported.")
    parameters = replace(
        _parameters(given, _COMPLETION_PARAMETERS), default_new_tokens=_DEFAULT_COMPLETION_TOKENS
    )
    return _call(given, prompt_texts(given["prompt"]), parameters)


def decode_chat(document: Mapping[str, object]) -> Call:
    """Return the request in a body of ``/chat/completions``.

    Raises:
        RequestError: The body is not of OpenAI's form, or has a key that is not supported.
    """
    given = _given(document, CHAT_KEYS, "messages")
    names = dict(_CHAT_PARAMETERS)
    if "max_completion_tokens" in given:
        names.pop("max_tokens")  # deprecated, and some clients send both
    parameters = replace(_parameters(given, names), logprobs=_chat_logprobs(given))
    return _call(given, [conversation(given["messages"])], parameters)


def _given(
    document: Mapping[str, object], supported: Sequence[str], needed: str
) -> dict[str, object]:
    """Return the supported keys; refuse others that would change the answer."""
    present = {key: value for key, value in document.items() if value is not None}
    for key, harmless in REFUSED.items():
        if key in present and present.pop(key) not in harmless:
            raise RequestError(f"{key} is not supported{_unless(key)}.")
    given = {key: value for key, value in present.items() if key not in IGNORED}
    check_keys(given, supported, "the body")
    if needed not in given:
        raise RequestError(f"The body has no {needed!r}.")
    return given


def _unless(key: str) -> str:
    return {
        "best_of": " above 1",
        "modalities": " other than ['text']",
    }.get(key, "")


def _parameters(given: Mapping[str, object], names: Mapping[str, str]) -> GenerationParameters:
    """Return checked parameters; errors name the client's keys (sentences begin with the name)."""
    keys = {name: key for key, name in names.items() if key in given}
    try:
        return parse_parameters({name: given[key] for name, key in keys.items()}, ALL_NAMES)
    except RequestError as error:
        name, space, rest = str(error).partition(" ")
        raise RequestError(keys.get(name, name) + space + rest) from None


def _chat_logprobs(given: Mapping[str, object]) -> int | None:
    wanted = optional(given, "logprobs", bool, "logprobs") or False
    top = _parameters(given, {"top_logprobs": "logprobs"}).logprobs or 0
    if top and not wanted:
        raise RequestError("top_logprobs needs logprobs to be true.")
    return top if wanted else None


def _call(
    given: Mapping[str, object], texts: Sequence[PromptText], parameters: GenerationParameters
) -> Call:
    n = _integer(given, "n", 1, None) if "n" in given else 1
    check_count(len(texts) * n)
    parameters = replace(parameters, grammar=structured.grammar_of(given))
    stream = optional(given, "stream", bool, "stream") or False
    variants = [_variant(parameters, number) for number in range(n)]
    prompts = tuple(Prompt(text, variant) for text in texts for variant in variants)
    return Call(GenerationRequest(prompts), n, stream, _include_usage(given, stream))


def _variant(parameters: GenerationParameters, number: int) -> GenerationParameters:
    """Return the parameters of one of `n` replies; each has its own seed, or all were the same."""
    if parameters.seed is None:
        return parameters
    return replace(parameters, seed=(parameters.seed + number) % _SEEDS)


def _include_usage(given: Mapping[str, object], stream: bool) -> bool:
    options = optional(given, "stream_options", dict, "stream_options")
    if options is None:
        return False
    if not stream:
        raise RequestError("stream_options needs stream to be true.")
    present = {key: value for key, value in options.items() if value is not None}
    check_keys(present, ("include_usage", "include_obfuscation"), "stream_options")
    return optional(present, "include_usage", bool, "stream_options.include_usage") or False


def _integer(given: Mapping[str, object], key: str, least: int, most: int | None) -> int:
    value = require_type(given[key], int, key)
    if most is not None and not least <= value <= most:
        raise RequestError(f"{key} must be between {least} and {most}.")
    if value < least:
        raise RequestError(f"{key} must be at least {least}.")
    return value
