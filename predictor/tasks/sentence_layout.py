"""Reads from a sentence-transformers layout how a vector is made of a model's states.

The layout is that of ``modules.json``: a list of modules, each with its type and its folder; of
these a transformer, a pooling and a normalisation are supported. Without that file vectors are the
normalised mean of all tokens, as in KServe's Hugging Face server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from predictor.errors import CheckpointError, reason_of

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The ways of pooling, by their keys in older files; newer files have one key with the name."""


@dataclass(frozen=True, slots=True)
class SentenceLayout:
    """How a vector is made of a model's states.

    Attributes:
        pooling: How the vectors of all tokens become one: ``cls``, ``mean``, ``max``,
            ``mean_sqrt_len``, ``weightedmean`` or ``lasttoken``.
        normalize: Whether vectors have length 1.
        max_length: Most tokens that the model was trained for; None if the layout has no limit.
        lower: Whether texts are put in lower case.
        prompts: Texts to put before others, by name.
        default_prompt: Name of the prompt for requests that name none.
    """

    pooling: str = "mean"
    normalize: bool = True
    max_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_layout(path: Path) -> SentenceLayout:
    """Return the layout of a model's directory; the defaults if it has no ``modules.json``.

    Raises:
        CheckpointError: A file cannot be read, or has a module that is not supported.
    """
    modules = _read(path / "modules.json", [])
    if not modules:
        return SentenceLayout()
    pooling, normalize = "mean", False
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(path / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise CheckpointError(
                f"{path / 'modules.json'} has a module {kind!r}, which cannot be served; known are "
                "Transformer, Pooling and Normalize."
            )
    transformer = _read(path / "sentence_bert_config.json", {})
    sentence_config = _read(path / "config_sentence_transformers.json", {})
    length = transformer.get("max_seq_length")
    return SentenceLayout(
        pooling,
        normalize,
        int(length) if length else None,
        bool(transformer.get("do_lower_case", False)),
        {str(name): str(text) for name, text in (sentence_config.get("prompts") or {}).items()},
        sentence_config.get("default_prompt_name"),
    )


def _pooling(file: Path) -> str:
    config = _read(file, {})
    named = config.get("pooling_mode")
    modes = [mode for key, mode in _POOLINGS.items() if config.get(key)]
    if isinstance(named, str):
        modes = [named]
    if len(modes) != 1 or modes[0] not in _POOLINGS.values():
        poolings = ", ".join(_POOLINGS.values())
        raise CheckpointError(f"{file} must name one way of pooling; known are {poolings}.")
    return modes[0]


def _read(file: Path, empty: Any) -> Any:
    """Return the JSON in a file, or `empty`, a value of the same type, if there is no file."""
    if not file.is_file():
        return empty
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {reason_of(error)}.") from None
    is_right = isinstance(content, type(empty)) and (
        isinstance(content, dict) or all(isinstance(item, dict) for item in content)
    )
    if not is_right:
        raise CheckpointError(f"{file} is not of the form that sentence-transformers writes.")
    return content
