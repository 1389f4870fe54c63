"""Finds what a checkpoint says of its quantisation, in its configs and in its files' headers.

A checkpoint says it in ``config.json``, as ``quantization_config`` or ``compression_config``, at
the top or in the part of its text model, or in a file of its own, ModelOpt's
``hf_quant_config.json``. What follows from that for each layer is decided in `linear.schemes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from predictor.errors import CheckpointError, reason_of

_KEYS = ("quantization_config", "compression_config")

_OWN_FILE = "hf_quant_config.json"
"""ModelOpt's file beside ``config.json``
(https://github.com/NVIDIA/Model-Optimizer, ``modelopt/torch/export``)."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint says of its quantisation.

    Attributes:
        values: The JSON object that says it.
        file: The file that holds this object.
    """

    values: Mapping[str, Any]
    file: Path


def take_quantization(config: PreTrainedConfig, path: Path) -> Quantization | None:
    """Take the quantisation out of a model's config, and return it; None without one.

    Afterwards transformers takes the model for one that is not quantised.

    Args:
        config: The model's config.
        path: The model's directory, or a bare ``config.json``.

    Raises:
        CheckpointError: What is said is no JSON object.
    """
    file = path if path.is_file() else path / "config.json"
    values = [_take(part, key) for part in _parts(config) for key in _KEYS]
    stated = [value for value in values if value]
    if not stated and (path / _OWN_FILE).is_file():
        file = path / _OWN_FILE
        stated = [_read(file)]
    if not stated:
        return None
    if not isinstance(stated[0], Mapping):
        raise CheckpointError(f"{file} describes a quantisation by something that is no object.")
    return Quantization(dict(stated[0]), file)


def _parts(config: PreTrainedConfig) -> list[Any]:
    """Return the config and the configs within it."""
    names = getattr(config, "sub_configs", None) or {}
    parts = (getattr(config, name, None) for name in names)
    return [config, *(part for part in parts if part is not None)]


def _take(config: Any, key: str) -> Any:
    value = getattr(config, key, None)
    if value is None:
        return None
    delattr(config, key)
    return value.to_dict() if hasattr(value, "to_dict") else value


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be used: {reason_of(error)}") from None
