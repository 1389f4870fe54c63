"""The setting that takes the place of values of a model's generation config."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from predictor.errors import ConfigurationError, RequestError
from predictor.sentences import quote
from predictor.tasks.generation_config import FOLLOWED

_OVERRIDDEN = tuple(
    name for name in FOLLOWED if not name.endswith("_token_id") and name != "max_length"
)
"""Those that a setting can override: the others belong to the model's vocabulary and kind."""


def with_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Return a generation config with other values; a temperature alone makes replies sampled."""
    changed = copy(config)
    implied = {"do_sample": True} if overrides.get("temperature") else {}
    vars(changed).update({**implied, **overrides})
    return changed


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Check the values of the setting that takes the place of a generation config's.

    Raises:
        ConfigurationError: A key is not followed, or a value is wrong.
    """
    for name, value in overrides.items():
        if name not in _OVERRIDDEN:
            raise ConfigurationError(
                f"override_generation_config has the key {quote(name)}; known are "
                f"{', '.join(_OVERRIDDEN)}."
            )
        if value is None:
            continue  # the config's value does not count, as with vLLM
        try:
            FOLLOWED[name](name, value)
        except RequestError as error:
            raise ConfigurationError(f"override_generation_config: {error}") from None
