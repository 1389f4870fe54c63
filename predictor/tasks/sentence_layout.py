"""What a sentence-transformers layout says of how vectors are made of a model's results.

The layout is that of ``modules.json``: a list of modules, each with its type and its folder; of
these a transformer, a pooling and a normalisation are known here. Without that file the mean of all
tokens is taken and normalised, as KServe's Hugging Face server does.
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
"""The ways of pooling that can be served, by their keys in older files; newer ones name one."""


@dataclass(frozen=True, slots=True)
class SentenceLayout:
    """How vectors are made.

    Attributes:
        pooling: How one vector is made of those of all tokens: ``cls``, ``mean``, ``max``,
            ``mean_sqrt_len``, ``weightedmean`` or ``lasttoken``.
        normalize: Whether vectors have length 1.
        max_length: Most tokens that the model was made to read at one time; None says nothing.
        lower: Whether texts are in lower case.
        prompts: Texts to put before others, by name.
        default_prompt: The name of the one that is put where none is named.
    """

    pooling: str = "mean"
    normalize: bool = True
    max_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_layout(path: Path) -> SentenceLayout:
    """Returns what a model's directory says; the defaults where it says nothing.

    Raises:
        CheckpointError: A file cannot be read, or asks for what cannot be served.
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
    about = _read(path / "sentence_bert_config.json", {})
    said = _read(path / "config_sentence_transformers.json", {})
    length = about.get("max_seq_length")
    return SentenceLayout(
        pooling,
        normalize,
        int(length) if length else None,
        bool(about.get("do_lower_case", False)),
        {str(name): str(text) for name, text in (said.get("prompts") or {}).items()},
        said.get("default_prompt_name"),
    )


def _pooling(file: Path) -> str:
    config = _read(file, {})
    named = config.get("pooling_mode")
    modes = [mode for key, mode in _POOLINGS.items() if config.get(key)]
    if isinstance(named, str):
        modes = [named]
    if len(modes) != 1 or modes[0] not in _POOLINGS.values():
        known = ", ".join(_POOLINGS.values())
        raise CheckpointError(f"{file} must name one way of pooling; known are {known}.")
    return modes[0]


def _read(file: Path, nothing: Any) -> Any:
    """The JSON in a file; `nothing`, which has its type, where there is no file."""
    if not file.is_file():
        return nothing
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {reason_of(error)}.") from None
    is_right = isinstance(found, type(nothing)) and (
        isinstance(found, dict) or all(isinstance(item, dict) for item in found)
    )
    if not is_right:
        raise CheckpointError(f"{file} is not of the form that sentence-transformers writes.")
    return found
