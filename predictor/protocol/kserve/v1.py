"""The V1 protocol: ``{"instances": [...]}`` in, ``{"predictions": [...]}`` out.

V1 has no machine-readable specification; the source is the SDK's ``v1_endpoints.py`` and KServe's
data plane documentation. An instance is a string, or an object with the prompt under one of
`PROMPT_KEYS` and optional parameters of its own, which override the request's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count, check_keys, kind, require_type
from predictor.tasks.parameters import parse_parameters
from predictor.tasks.request import (
    UNSAID,
    Completion,
    GenerationParameters,
    GenerationRequest,
    Piece,
    Prompt,
    finish_reason,
)

PROMPT_KEYS = ("text", "prompt", "data")
"""Keys of an instance that may hold its prompt."""

_KEYS = ("instances", "parameters")
_INSTANCE_KEYS = (*PROMPT_KEYS, "parameters")


def decode(
    document: Mapping[str, object], unsaid: GenerationParameters = UNSAID
) -> GenerationRequest:
    """Returns the request of a V1 body.

    Args:
        document: The body.
        unsaid: What holds where the body says nothing.

    Raises:
        RequestError: The body is not of the form above, has no instance, or a parameter is wrong.
    """
    check_keys(document, _KEYS, "the body")
    if "instances" not in document:
        raise RequestError("The body has no 'instances'.")
    instances = require_type(document["instances"], list, "instances")
    if not instances:
        raise RequestError("instances is empty; give at least one prompt.")
    check_count(len(instances))
    shared = _parameters(document, "parameters")
    checked = parse_parameters(shared, unsaid=unsaid)
    return GenerationRequest(
        tuple(
            Prompt(instance, checked)
            if isinstance(instance, str)
            else decode_instance(instance, f"instances[{number}]", shared=shared, unsaid=unsaid)
            for number, instance in enumerate(instances)
        )
    )


def decode_instance(
    instance: object,
    where: str,
    *,
    shared: Mapping[str, object],
    unsaid: GenerationParameters,
) -> Prompt:
    """Returns the prompt of an instance that is an object.

    Args:
        instance: The object.
        where: What it is called in sentences.
        shared: Parameters that hold where the instance has none of its own.
        unsaid: What holds where neither says anything.

    Raises:
        RequestError: It is no such object, or a parameter is wrong.
    """
    if not isinstance(instance, dict):
        raise RequestError(f"{where} must be a string or an object, not {kind(instance)}.")
    check_keys(instance, _INSTANCE_KEYS, where)
    own = _parameters(instance, f"{where}.parameters")
    try:
        parameters = parse_parameters({**shared, **own}, unsaid=unsaid)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from None
    return Prompt(_text(instance, where), parameters)


def encode(completions: Sequence[Completion]) -> dict[str, object]:
    """Returns the V1 response for completions, in their order."""
    return {"predictions": [_prediction(completion) for completion in completions]}


def encode_plain(completions: Sequence[Completion]) -> dict[str, object]:
    """Returns the response with the texts alone, as TorchServe's V1 envelope gave them."""
    return {"predictions": [completion.text for completion in completions]}


def encode_piece(piece: Piece) -> list[object]:
    """Returns the one event of a streamed reply's piece; its counts come with the last one."""
    event: dict[str, object] = {"index": piece.index, "text": piece.text, "finish_reason": None}
    if piece.ending is not None:
        event["finish_reason"] = finish_reason(piece.ending)
        event["prompt_tokens"] = piece.prompt_tokens
        event["completion_tokens"] = piece.completion_tokens
    return [event]


def _prediction(completion: Completion) -> dict[str, object]:
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }


def _text(instance: Mapping[str, object], where: str) -> str:
    given = [key for key in PROMPT_KEYS if key in instance]
    if len(given) != 1:
        count = "none" if not given else " and ".join(given)
        raise RequestError(f"{where} needs one of {', '.join(PROMPT_KEYS)}; it has {count}.")
    return require_type(instance[given[0]], str, f"{where}.{given[0]}")


def _parameters(holder: Mapping[str, object], where: str) -> dict[str, object]:
    given = require_type(holder.get("parameters", {}), dict, where)
    return {name: value for name, value in given.items() if value is not None}
