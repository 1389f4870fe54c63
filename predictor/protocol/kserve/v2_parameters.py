"""Generation parameters of a V2 request: as the request's parameters or as input tensors.

A V2 parameter is a scalar, and over gRPC not even a number with a fraction (``InferParameter`` has
``bool_param``, ``int64_param`` and ``string_param``). So a numeric string stands for a number where
a fraction is allowed, and a JSON list in a string for the list of stop strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.kserve.tensors import Element, elements
from predictor.tasks.parameters import parse_parameters
from predictor.tasks.request import GenerationParameters

PROTOCOL_PARAMETERS = frozenset(
    {"binary_data", "binary_data_output", "binary_data_size", "content_type"}
)
"""Parameters that say how tensors travel, not how to generate: the binary tensor data extension's,
and the content type that MLServer's clients send."""

_FRACTIONS = frozenset(
    {
        "temperature",
        "top_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "timeout",
    }
)
_NUMERIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def parse_v2_parameters(
    given: Mapping[str, object],
    tensors: Sequence[Any],
    prompts: int,
    unsaid: GenerationParameters,
) -> tuple[GenerationParameters, ...]:
    """Returns the checked parameters of each prompt.

    Args:
        given: The request's parameters.
        tensors: The `InferInput`s that are named as a parameter. One element is for all prompts, as
            many elements as prompts are one for each; the elements of ``stop`` are a list for all.
        prompts: How many prompts there are.
        unsaid: What holds where nothing is said.

    Raises:
        RequestError: A parameter is unknown, wrong, or given twice, or a tensor has another count.
    """
    shared = {
        name: _scalar(name, value)
        for name, value in given.items()
        if name not in PROTOCOL_PARAMETERS
    }
    columns: dict[str, list[object]] = {}
    for tensor in tensors:
        if tensor.name in shared:
            raise RequestError(f"{tensor.name} is given twice, as a parameter and as an input.")
        _place(tensor.name, elements(tensor), prompts, shared, columns)
    if not columns:
        return (parse_parameters(shared, unsaid=unsaid),) * prompts
    rows = ({name: column[row] for name, column in columns.items()} for row in range(prompts))
    return tuple(parse_parameters({**shared, **own}, unsaid=unsaid) for own in rows)


def _place(
    name: str,
    values: list[Element],
    prompts: int,
    shared: dict[str, object],
    columns: dict[str, list[object]],
) -> None:
    if name == "stop":
        shared[name] = values
    elif len(values) == 1:
        shared[name] = fraction(name, values[0])
    elif len(values) == prompts:
        columns[name] = [fraction(name, value) for value in values]
    else:
        counts = "1" if prompts == 1 else f"1 or {prompts}"
        raise RequestError(f"Input '{name}' has {len(values)} elements instead of {counts}.")


def _scalar(name: str, value: object) -> object:
    if name == "stop" and isinstance(value, str):
        return _stop(value)
    return fraction(name, value)


def fraction(name: str, value: object) -> object:
    """Returns the number that a string stands for where a fraction is allowed, else the value."""
    is_numeric = isinstance(value, str) and _NUMERIC.fullmatch(value)
    return float(str(value)) if name in _FRACTIONS and is_numeric else value


def _stop(text: str) -> object:
    try:
        stops = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_list = isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)
    return stops if is_list else text
