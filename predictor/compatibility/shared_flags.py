"""The flags that vLLM has too: values that are none, and API keys of several words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictor.compatibility.apply import FLAGS
from predictor.compatibility.flag import ABSENT
from predictor.errors import ConfigurationError
from predictor.settings import Settings
from predictor.settings_sources import own_variables

SHARED = frozenset(
    {
        *("allowed_origins", "api_key", "dtype", "host", "lora_modules", "max_model_len"),
        *("model_revision", "override_generation_config", "reasoning_parser", "ssl_certfile"),
        *("ssl_keyfile", "task", "tool_call_parser", "trust_remote_code"),
    }
)
"""Our settings that have a flag of vLLM's with the same name."""

_LISTS = ("allowed_origins", "lora_modules")
"""Those of which an empty text is a value: a list without elements."""

_MODEL = ("model", "model_dir", "model_id", "model_uri")

_MOUNTED = Path("/mnt/models")
"""Where KServe mounts the model of an InferenceService."""


def without_absent(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags without values that vLLM takes for absent, and without flags that have no other.

    Args:
        flags: Texts and lists of texts by name, ours and those of other servers.
    """
    present: dict[str, Any] = {}
    for name, value in flags.items():
        if isinstance(value, list) and value:
            if words := [word for word in value if not _is_absent(name, word)]:
                present[name] = words
        elif not _is_absent(name, value):
            present[name] = value
    return present


def _is_absent(name: str, value: Any) -> bool:
    if name == "api_key":  # without it anybody is let in
        return value is None
    if name in FLAGS or name in SHARED:
        return value is None or value in (("None",) if name in _LISTS else ABSENT)
    field = Settings.model_fields.get(name)
    return value is None or (value == "None" and field is not None and field.default is None)


def with_keys(flags: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return flags whose API keys, which may be several words as in vLLM, are a setting's value.

    Args:
        flags: Flags by name.
        environ: The environment, which may name the model.

    Raises:
        ConfigurationError: The model may be one of the words.
    """
    keys = flags.get("api_key", ())
    if len(keys) == 1:
        return {**flags, "api_key": keys[0]}
    variables = own_variables(environ)
    has_model = any(name in flags or variables.get(name) for name in _MODEL) or _MOUNTED.is_dir()
    if keys and (not has_model or str(_MOUNTED) in keys):
        raise ConfigurationError(
            "--api_key takes all words that follow it: name the model before it, or with "
            "--model_dir, --model_id or --model_uri."
        )
    return dict(flags)
