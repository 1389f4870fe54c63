"""Decodes the requests of Text Generation Inference.

The source is TGI 3.3 (``router/src/lib.rs`` and ``router/src/validation.rs``). Its defaults are
followed and not those of the model: a reply is greedy unless a parameter makes it sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    check_keys,
    check_nesting,
    optional,
    parse_document,
    present,
    require_type,
)
from predictor.protocol.openai.keys import Refusal, split_keys
from predictor.protocol.openai.structured import json_grammar, regex_grammar, schema_text
from predictor.sentences import quote
from predictor.tasks.parameters import ALL_NAMES, integer, parse_parameters
from predictor.tasks.request import (
    MAX_INSTANCES,
    GenerationParameters,
    GenerationRequest,
    Grammar,
    Prompt,
)

_NAMES = {
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "return_full_text": "return_full_text",
    "top_n_tokens": "logprobs",
    "truncate": "prompt_limit",
}
"""TGI's parameters with the names of `GenerationParameters`."""

PARAMETERS = (
    *_NAMES,
    *("do_sample", "details", "grammar", "adapter_id", "best_of", "decoder_input_details"),
)
"""Keys of ``parameters`` that are followed."""

REFUSED: Mapping[str, Refusal] = {
    "typical_p": Refusal("the sampler has no such step"),
    "watermark": Refusal("replies are not marked", (False,)),
}
"""Keys of ``parameters`` that would change the answer, and the reasons why they are refused."""

_BODY = ("inputs", "parameters", "stream")
_DEFAULT_TOKENS = 1024
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """A decoded request and everything that its response depends on.

    Attributes:
        request: The request, of one prompt, `best_of` times.
        adapter: The LoRA adapter that answers; None is the model alone.
        stream: Whether the body asks for a stream.
        details: Whether a whole response has the tokens.
        top_tokens: Whether a response has alternatives of its tokens.
        best_of: Replies of which the client gets the most probable one.
        ignored: Names of keys that no table has.
    """

    request: GenerationRequest
    adapter: str | None
    stream: bool
    details: bool
    top_tokens: bool
    best_of: int
    ignored: tuple[str, ...]

    @property
    def parameters(self) -> GenerationParameters:
        """The parameters of its prompt."""
        return self.request.prompts[0].parameters


def decode_body(body: bytes, streams: bool | None) -> Call:
    """Return the request in a body.

    Args:
        body: The body.
        streams: Whether the reply is streamed; None leaves that to the body.

    Raises:
        RequestError: The body is not of TGI's form, or has a parameter that is not supported.
    """
    document = parse_document(body)
    check_nesting(document)
    given, strange = split_keys(document, _BODY, refused={}, ignored=())
    if "inputs" not in given:
        raise RequestError("The body has no 'inputs'.")
    inputs = require_type(given["inputs"], str, "inputs")
    if not inputs:
        raise RequestError("inputs is empty.")
    parameters = optional(given, "parameters", dict, "parameters") or {}
    followed, ignored = split_keys(parameters, PARAMETERS, refused=REFUSED, ignored=())
    in_body = optional(given, "stream", bool, "stream") or False
    stream = in_body if streams is None else streams
    details = optional(followed, "details", bool, "details") or False
    scores_prompt = optional(followed, "decoder_input_details", bool, "decoder_input_details")
    if scores_prompt and stream:
        raise RequestError("decoder_input_details cannot be streamed: ask for a whole reply.")
    details = details or bool(scores_prompt)
    best_of = _best_of(followed, stream=stream)
    sampling = _parameters(followed, scores=stream or details, is_chosen=best_of > 1)
    if scores_prompt:
        sampling = replace(sampling, prompt_logprobs=0)
    return Call(
        request=GenerationRequest((Prompt(inputs, sampling),) * best_of),
        adapter=optional(followed, "adapter_id", str, "adapter_id"),
        stream=stream,
        details=details,
        top_tokens="top_n_tokens" in followed,
        best_of=best_of,
        ignored=strange + ignored,
    )


def _best_of(given: Mapping[str, object], *, stream: bool) -> int:
    """Return the number of replies to generate, of which more than one must differ."""
    best_of = integer("best_of", given.get("best_of", 1), 1, MAX_INSTANCES)
    if best_of == 1:
        return best_of
    if stream:
        raise RequestError("best_of above 1 cannot be streamed: the best is known at the end.")
    if not _is_sampled(given):
        raise RequestError("best_of above 1 needs do_sample: greedy replies are all the same.")
    if "seed" in given:
        raise RequestError("best_of above 1 takes no seed: the replies would all be the same.")
    return best_of


def _parameters(
    given: Mapping[str, object], *, scores: bool, is_chosen: bool
) -> GenerationParameters:
    named = {_NAMES[key]: value for key, value in given.items() if key in _NAMES}
    limit = named.pop("prompt_limit", None)
    optional(named, "stop", list, "stop")
    if not scores:
        named.pop("logprobs", None)
    if (scores or is_chosen) and "logprobs" not in named:
        named["logprobs"] = 0
    if given.get("temperature") == 0:
        raise RequestError("temperature must be above 0; leave it out for a greedy reply.")
    if not _is_sampled(given):
        named["temperature"] = 0
    defaults = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    try:
        parsed = parse_parameters(defaults | named, ALL_NAMES)
    except RequestError as error:
        raise RequestError(str(error).replace("logprobs", "top_n_tokens", 1)) from None
    return replace(
        parsed,
        default_new_tokens=_DEFAULT_TOKENS,
        grammar=_grammar(optional(given, "grammar", dict, "grammar")),
        prompt_limit=None if limit is None else integer("truncate", limit, 1, _MOST_TOKENS),
        keeps_prompt_end=True,
    )


def _is_sampled(given: Mapping[str, object]) -> bool:
    """Return whether a reply is sampled: any parameter that changes probabilities makes it so."""
    changes = given.get("temperature", 1.0) != 1.0 or "top_p" in given or "top_k" in given
    return changes or optional(given, "do_sample", bool, "do_sample") or False


def _grammar(given: Mapping[str, object] | None) -> Grammar | None:
    if given is None:
        return None
    there = present(given)
    check_keys(there, ("type", "value"), "grammar")
    sort, value = require_type(there.get("type"), str, "grammar.type"), there.get("value")
    if sort == "json":
        return json_grammar(value, "grammar.value")
    if sort == "regex":
        return regex_grammar(value, "grammar.value")
    if sort == "json_schema":
        holder = require_type(value, dict, "grammar.value")
        return Grammar("json_schema", schema_text(holder.get("schema"), "grammar.value.schema"))
    raise RequestError(f"grammar.type must be one of json, regex, json_schema, not {quote(sort)}.")
