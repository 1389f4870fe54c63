"""The types of settings: how text becomes bytes, dtypes and devices."""

from __future__ import annotations

import contextlib
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from predictor import dtypes
from predictor.quantity import as_quantity, parse_bytes


def _from_json(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"is no JSON object ({error})") from None
    return value


def _memory_by_device(value: Any) -> Any:
    amounts = _from_json(value)
    if amounts is None:
        return None
    if not isinstance(amounts, dict):
        raise ValueError('must be an object such as {"0": "10GiB", "cpu": "30GiB"}')
    return {str(device): parse_bytes(amount) for device, amount in amounts.items()}


def _json_object(value: Any) -> Any:
    document = _from_json(value)
    if not isinstance(document, dict):
        raise ValueError('must be an object such as {"max_new_tokens": 50}')
    return document


def _split(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):  # as vLLM has lists
        with contextlib.suppress(ValueError):
            return json.loads(value)
    if isinstance(value, str):
        return [name for part in value.split(",") if (name := part.strip())]
    return value


def _model_name(value: Any) -> Any:
    if isinstance(value, str) and re.search(r"[/:\s]", value):
        raise ValueError(
            "is part of URLs, and so has no slash, colon or space; model_aliases takes other names"
        )
    return value


_NUMBER = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[kmgtKMGT])")

_VLLM_TASKS = {
    "auto": None,
    "generate": None,
    "embed": "text_embedding",
    "embedding": "text_embedding",
    "classify": "sequence_classification",
    "score": "rerank",
}
"""Tasks by the names of vLLM's older ``--task``; None is detected."""

URI_SCHEMES = ("s3", "https", "http")
"""Schemes of `model_uri`."""


def _no_uri(value: Any) -> Any:
    scheme, colon, rest = str(value).partition("://")
    if not colon:
        return value
    if scheme == "hf":
        raise ValueError(f"is no directory; a repository on the hub is model_id={rest}")
    if scheme in URI_SCHEMES:
        raise ValueError(
            "is no directory; set it as model_uri, or as the storageUri of the InferenceService"
        )
    raise ValueError(
        "is no directory; set it as the storageUri of the InferenceService, which is fetched to "
        "/mnt/models, or mount a volume"
    )


def _tokens(value: Any) -> Any:
    """Return a number of tokens, which vLLM's flags also take as ``32k`` (of 1000) and ``32K``."""
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    power = "kmgt".index(match["unit"].lower()) + 1
    return int(Decimal(match["number"]) * (1000 if match["unit"].islower() else 1024) ** power)


def _model_len(value: Any) -> Any:
    if str(value) in ("auto", "-1"):
        raise ValueError(
            "is not fitted to the memory; leave it out for the model's own context up to 8192 "
            "tokens, or set a number, which `predictor plan` shows the memory of"
        )
    return _tokens(value)


def _task(value: Any) -> Any:
    return _VLLM_TASKS.get(value, value) if isinstance(value, str) else value


def _devices(value: Any) -> Any:
    device_map = _from_json(value)
    if isinstance(device_map, dict):
        return {name: str(device) for name, device in device_map.items()}
    return str(device_map)


def _adapters(value: Any) -> Any:
    """Return adapters by name: of ``name=path`` pairs, or of JSON as vLLM takes it."""
    words = value if isinstance(value, list | tuple) else [value]
    pairs = [_pair(each) for word in words for each in _adapters_of(word)]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("names an adapter twice")
    return dict(pairs)


def _adapters_of(word: Any) -> list[Any]:
    """Return the adapters of one word of a flag, or of one element of a list."""
    if isinstance(word, str):
        if not word.lstrip().startswith(("{", "[")):
            return [pair for pair in word.split(",") if pair.strip()]
        document = json.loads(word)
        return document if isinstance(document, list) else _adapters_of(document)
    if isinstance(word, dict) and not set(word) >= {"name", "path"}:
        return list(word.items())
    return [word]


def _pair(value: Any) -> tuple[str, str]:
    if isinstance(value, dict):
        value = (value.get("name"), value.get("path"))
    pair = value.strip().split("=", 1) if isinstance(value, str) else value
    name, path = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
    if not (isinstance(name, str) and name and not set(name) & set("/: ") and path):
        raise ValueError("must be pairs such as name=path")
    return name, re.sub(r"^hf://", "", str(path))


Bytes = Annotated[int, BeforeValidator(parse_bytes), PlainSerializer(as_quantity, when_used="json")]
Dtype = Annotated[
    Literal["auto", dtypes.ServingDType],
    BeforeValidator(lambda text: dtypes.SETTING_ALIASES.get(str(text), dtypes.name_of(text))),
]

Names = Annotated[
    tuple[Annotated[str, Field(pattern=r"^\S+$")], ...],
    BeforeValidator(_split),
    PlainSerializer(",".join, when_used="json"),
]
Adapters = Annotated[
    dict[str, str],
    BeforeValidator(_adapters),
    PlainSerializer(
        lambda sources: ",".join(f"{name}={source}" for name, source in sources.items()),
        when_used="json",
    ),
]
Tokens = Annotated[int, BeforeValidator(_tokens)]
MaxModelLen = Annotated[int | None, BeforeValidator(_model_len)]
ModelName = Annotated[str, BeforeValidator(_model_name)]
ModelDir = Annotated[Path, BeforeValidator(_no_uri)]

Task = Annotated[
    Literal[
        "text_generation",
        "text2text_generation",
        "sequence_classification",
        "token_classification",
        "question_answering",
        "fill_mask",
        "text_embedding",
        "rerank",
        "pooling",
    ]
    | None,
    BeforeValidator(_task),
]

JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]
MemoryByDevice = Annotated[dict[str, Bytes] | None, BeforeValidator(_memory_by_device)]
DeviceMap = Annotated[str | dict[str, str], BeforeValidator(_devices)]
