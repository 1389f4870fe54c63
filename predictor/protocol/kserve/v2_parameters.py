"""The parameters of a V2 request: parameters of the request, or input tensors.

A V2 parameter is a scalar, and over gRPC not even a number with a fraction (``InferParameter`` has
``bool_param``, ``int64_param`` and ``string_param``). So a numeric string stands for a number where
a fraction is allowed, and a JSON list in a string for a list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.kserve.tensors import Element, elements, size_of
from predictor.sentences import quote

PROTOCOL_PARAMETERS = frozenset(
    {"binary_data", "binary_data_output", "binary_data_size", "content_type"}
)
"""Parameters of the transport and not of the task: those of the binary tensor data extension, and
the content type that MLServer's clients send."""

_FRACTIONS = frozenset(
    {
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "timeout",
    }
)
_LISTS = {"stop": str, "bad_words": str, "stop_token_ids": int, "allowed_token_ids": int}
"""Parameters that are lists, and what of."""

_NUMERIC = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class V2Parameters:
    """The parameters of a request, which its task has still to check.

    Attributes:
        shared: Those of all instances, by name.
        columns: Those with a value for each instance, by name.
    """

    shared: dict[str, object]
    columns: dict[str, list[object]]

    def row(self, number: int) -> dict[str, object]:
        """Return the own parameters of an instance."""
        return {name: column[number] for name, column in self.columns.items()}


def decode_parameters(
    given: Mapping[str, object], tensors: Sequence[Any], count: int
) -> V2Parameters:
    """Return the parameters of a request.

    Args:
        given: The request's parameters.
        tensors: The `InferInput`s that are named as a parameter. One element is for all instances,
            `count` elements are one for each; the elements of a list are for all.
        count: Instances in the request.

    Raises:
        RequestError: A parameter is given twice, or a tensor has another number of elements.
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
        _check_size(tensor, count)
        _place(tensor.name, elements(tensor), shared, columns)
    return V2Parameters(shared, columns)


def _check_size(tensor: Any, count: int) -> None:
    """Check the size of a tensor by its shape, before any of its elements is looked at."""
    size = size_of(tensor.shape, f"Input {quote(tensor.name)}")
    if size not in (1, count) and tensor.name not in _LISTS:
        counts = "1" if count == 1 else f"1 or {count}"
        raise RequestError(f"Input '{tensor.name}' has {size} elements instead of {counts}.")


def _place(
    name: str,
    values: list[Element],
    shared: dict[str, object],
    columns: dict[str, list[object]],
) -> None:
    if name in _LISTS:
        shared[name] = values
    elif len(values) == 1:
        shared[name] = _fraction(name, values[0])
    else:
        columns[name] = [_fraction(name, value) for value in values]


def _scalar(name: str, value: object) -> object:
    if name in _LISTS and isinstance(value, str):
        return _list(value, _LISTS[name])
    return _fraction(name, value)


def _fraction(name: str, value: object) -> object:
    """Return the number in a string if the parameter may have a fraction, else the value."""
    is_numeric = isinstance(value, str) and _NUMERIC.fullmatch(value)
    return float(str(value)) if name in _FRACTIONS and is_numeric else value


def _list(text: str, kind: type) -> object:
    """Return the list in a string, or the string itself, which may be a single item."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_list = isinstance(items, list) and all(isinstance(item, kind) for item in items)
    return items if is_list else text
