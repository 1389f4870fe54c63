"""Decodes OpenAI's requests for completions and chat completions.

Which keys are followed is said here, which are refused or ignored in `keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    check_count,
    check_nesting,
    optional,
    parse_document,
    present,
    require_type,
)
from predictor.protocol.openai import structured, tools
from predictor.protocol.openai.chat import conversation_of
from predictor.protocol.openai.keys import REFUSED, Refusal, split_keys
from predictor.protocol.openai.nested_keys import nested_names
from predictor.protocol.openai.parameters import SHARED, parameters_of
from predictor.protocol.openai.prompt import prompt_texts
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt, PromptText

_MOST_COMPLETION_LOGPROBS = 5
_MOST_LOGPROBS = 20
_DEFAULT_COMPLETION_TOKENS = 16
_SEEDS = 2**63

_Call = TypeVar("_Call")

_COMPLETION_PARAMETERS = {**SHARED} | {
    "max_tokens": "max_new_tokens",
    "logprobs": "logprobs",
    "echo": "return_full_text",
    "forced_bos_token_id": "forced_bos_token_id",
}
_CHAT_PARAMETERS = {**SHARED} | {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}
"""Clients' keys and their parameters' names here."""

_SCORES = "prompt_logprobs"
_ASIDE = (
    _SCORES,
    "model",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "cache_salt",
    *structured.KEYS,
)

COMPLETION_KEYS = ("prompt", *_COMPLETION_PARAMETERS, *_ASIDE)
"""Keys of a request for completions that are supported."""

CHAT_KEYS = (
    *("messages", *_CHAT_PARAMETERS, "logprobs", "top_logprobs", *_ASIDE),
    *tools.KEYS,
)
"""Keys of a request for chat completions that are supported."""


@dataclass(frozen=True, slots=True)
class Call:
    """A decoded request and everything that its response depends on.

    Attributes:
        request: `best_of` prompts in a row for each prompt of the client.
        n: Replies to each prompt that the client gets.
        best_of: Replies to each prompt, of which the client gets the most probable ones.
        hides_logprobs: Whether log probabilities serve only to choose among the replies.
        stream: Whether the replies are streamed.
        include_usage: Whether a stream ends with its usage.
        ignored: Names of keys that no table has.
        prompt_logprobs: How many alternatives the client gets with each token of the prompt; None
            if it gets no such list.
    """

    request: GenerationRequest
    n: int
    best_of: int
    hides_logprobs: bool
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...] = ()
    prompt_logprobs: int | None = None


def model_name(document: Mapping[str, object]) -> str:
    """Return the name of the model in a body.

    Raises:
        RequestError: It names none.
    """
    if document.get("model") is None:
        raise RequestError("The body has no 'model'.")
    return require_type(document["model"], str, "model")


def decode_body(
    body: bytes, decode: Callable[[Mapping[str, object]], _Call]
) -> tuple[str, _Call | RequestError]:
    """Return the name of the model in a body, and the request or what is wrong with it.

    Args:
        body: The body.
        decode: Returns the request in a document, such as `decode_chat`.

    Raises:
        RequestError: The body is no JSON object, or names no model.
    """
    document = parse_document(body)
    name = model_name(document)
    try:
        check_nesting(document)
        return name, decode(document)
    except RequestError as error:
        return name, error


def decode_completion(document: Mapping[str, object]) -> Call:
    """Return the request in a body of ``/completions``.

    Raises:
        RequestError: The body is not of OpenAI's form, or has a key that is not supported.
    """
    refused = {**REFUSED, **tools.REFUSED_OF_COMPLETIONS}
    given, ignored = _given(document, COMPLETION_KEYS, "prompt", refused)
    if given.get("logprobs") is False:
        del given["logprobs"]
    if "logprobs" in given:
        _integer(given, "logprobs", 0, _MOST_COMPLETION_LOGPROBS)
    parameters = replace(
        _scoring(given, _COMPLETION_PARAMETERS), default_new_tokens=_DEFAULT_COMPLETION_TOKENS
    )
    call = _call(given, prompt_texts(given["prompt"]), parameters)
    return replace(call, ignored=ignored + nested_names(given))


def decode_chat(document: Mapping[str, object]) -> Call:
    """Return the request in a body of ``/chat/completions``.

    Raises:
        RequestError: The body is not of OpenAI's form, or has a key that is not supported.
    """
    given, ignored = _given(document, CHAT_KEYS, "messages", REFUSED)
    names = dict(_CHAT_PARAMETERS)
    if "max_completion_tokens" in given:
        names.pop("max_tokens")  # deprecated, and some clients send both
    parameters = replace(_scoring(given, names), logprobs=_chat_logprobs(given))
    conversation, calls = conversation_of(given)
    call = _call(given, [conversation], replace(parameters, grammar=calls))
    return replace(call, ignored=ignored + nested_names(given))


def _given(
    document: Mapping[str, object],
    followed: Sequence[str],
    needed: str,
    refused: Mapping[str, Refusal],
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the keys that are followed, and the names of those that no table has."""
    given, ignored = split_keys(document, followed, refused=refused)
    if needed not in given:
        raise RequestError(f"The body has no {needed!r}.")
    return given, ignored


def _scoring(given: Mapping[str, object], names: Mapping[str, str]) -> GenerationParameters:
    """Return checked parameters, with the log probabilities of the prompt that are needed.

    They are those of ``prompt_logprobs``, and those of ``logprobs`` where a reply begins with its
    prompt. Then ``max_tokens`` may be 0: the prompt is all that there is to compute.
    """
    wanted = [_integer(given, _SCORES, 0, _MOST_LOGPROBS)] if _SCORES in given else []
    if wanted and given.get("stream") is True:
        raise RequestError(
            "prompt_logprobs cannot be streamed: set stream to false, or have the prompts of "
            "completions by echo and logprobs."
        )
    if given.get("echo") is True:
        wanted += [_integer(given, "logprobs", 0, None)] if "logprobs" in given else []
    empty = {
        key
        for key, name in names.items()
        if name == "max_new_tokens" and given.get(key) == 0 and given.get(key) is not False
    }
    is_empty = bool(empty) and (bool(wanted) or given.get("echo") is True)
    if is_empty:
        given = {key: value for key, value in given.items() if key not in empty}
    parameters = parameters_of(given, names)
    return replace(
        parameters,
        max_new_tokens=0 if is_empty else parameters.max_new_tokens,
        prompt_logprobs=max(wanted, default=None),
    )


def _chat_logprobs(given: Mapping[str, object]) -> int | None:
    wanted = optional(given, "logprobs", bool, "logprobs") or False
    top = parameters_of(given, {"top_logprobs": "logprobs"}).logprobs or 0
    if top and not wanted:
        raise RequestError("top_logprobs needs logprobs to be true.")
    return top if wanted else None


def _call(
    given: Mapping[str, object], texts: Sequence[PromptText], parameters: GenerationParameters
) -> Call:
    grammar = structured.grammar_of(given)
    if grammar is not None and parameters.grammar is not None:
        raise RequestError("tool_choice cannot force a call of a reply that has another form.")
    parameters = replace(parameters, grammar=grammar or parameters.grammar)
    stream = optional(given, "stream", bool, "stream") or False
    n, best_of = _counts(given, stream)
    check_count(len(texts) * best_of)
    chooses = best_of > n
    hides_logprobs = chooses and parameters.logprobs is None
    if hides_logprobs:
        parameters = replace(parameters, logprobs=0)
    variants = [_variant(parameters, number) for number in range(best_of)]
    prompts = tuple(Prompt(text, variant) for text in texts for variant in variants)
    usage = _include_usage(given, stream)
    salt = optional(given, "cache_salt", str, "cache_salt") or ""
    request = GenerationRequest(prompts, cache_salt=salt)
    scores = _integer(given, _SCORES, 0, None) if _SCORES in given else None
    return Call(request, n, best_of, hides_logprobs, stream, usage, prompt_logprobs=scores)


def _counts(given: Mapping[str, object], stream: bool) -> tuple[int, int]:
    """Return the numbers of replies that the client gets, and among which they are chosen."""
    n = _integer(given, "n", 1, None) if "n" in given else 1
    best_of = _integer(given, "best_of", 1, None) if "best_of" in given else n
    if best_of < n:
        raise RequestError(f"best_of must be at least n, which is {n}.")
    if stream and best_of > n:
        raise RequestError("best_of above n cannot be streamed: the best is known at the end.")
    return n, best_of


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
    where = "stream_options.include_usage"
    return optional(present(options), "include_usage", bool, where) or False


def _integer(given: Mapping[str, object], key: str, least: int, most: int | None) -> int:
    value = require_type(given[key], int, key)
    if most is not None and not least <= value <= most:
        raise RequestError(f"{key} must be between {least} and {most}.")
    if value < least:
        raise RequestError(f"{key} must be at least {least}.")
    return value
