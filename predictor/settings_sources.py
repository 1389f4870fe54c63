"""The sources of settings: names, the environment and the predecessor's ``setup_config.json``.

This module knows no setting; `settings` has them.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from predictor.errors import ConfigurationError

logger = logging.getLogger(__name__)

ALIASES = {"revision": "model_revision", "torch_dtype": "dtype"}
"""The predecessor's names of settings that KServe's Hugging Face server names differently."""

VARIABLES = {
    "KSERVE_OPENAI_ROUTE_PREFIX": "openai_route_prefix",
    "KSERVE_LOGLEVEL": "log_level",
    "KSERVE_TLS_CERT_FILE": "ssl_certfile",
    "KSERVE_TLS_KEY_FILE": "ssl_keyfile",
    "VLLM_API_KEY": "api_key",
}
"""Variables of KServe's SDK and of vLLM, and the settings that they set."""

_WHOLE = ("VLLM_API_KEY",)
"""Those that have one value, with any commas in it, for a setting that takes several."""

_QUANTISE = ("quantization", "quantize", "load_in_8bit", "load_in_4bit")
"""Settings of vLLM, TGI and transformers, in the place of which there is one of ours."""

_MISSPELT = 0.85
"""The likeness to a setting's name from which on another name is a misspelling of it."""

PREFIX = "PREDICTOR_"
_SETUP_CONFIG = "setup_config.json"
_SERVICE_LINK = re.compile(
    r"PREDICTOR_(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=\d|PORT(_\d+_\w+)?=\w+://"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=).*"
)
"""``NAME=value`` of the variables that Kubernetes sets for Services named ``predictor...``."""


class SetupConfig(PydanticBaseSettingsSource):
    """The predecessor's ``setup_config.json``, read from the model directory if there is one."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` reads the whole file."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Return the file's keys by the names of the settings."""
        if self.current_state.get("model_id") or self.current_state.get("model_uri"):
            return {}
        path = Path(self.current_state.get("model_dir", "/mnt/models")) / _SETUP_CONFIG
        try:
            keys = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):  # `plan` accepts a bare config.json
            return {}
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read as JSON: {error}.") from None
        if not isinstance(keys, dict):
            raise ConfigurationError(f"{path} must hold one JSON object.")
        names = self.settings_cls.model_fields
        own = {key for key in keys if is_foreign(key, names)}
        check_known(keys.keys() - own, "key", names, where=f" in {path}")
        if own:
            logger.warning("%s has keys that are no settings: %s", path, ", ".join(sorted(own)))
        specified = by_field(
            {key: value for key, value in keys.items() if value is not None and key not in own}
        )
        if isinstance(specified.get("offload_folder"), str):
            # The predecessor ran in the model's directory; this process may run anywhere.
            specified["offload_folder"] = path.parent / specified["offload_folder"]
        # pydantic would merge objects, but a source of higher precedence replaces the whole value.
        return {name: value for name, value in specified.items() if name not in self.current_state}


def is_foreign(name: str, choices: Collection[str]) -> bool:
    """Return whether a name is that of no setting, and not a misspelt one either.

    The predecessor ignored keys that its handler did not read.
    """
    if name in choices or name in ALIASES or name in _QUANTISE:
        return False
    return not difflib.get_close_matches(name, (*choices, *ALIASES), n=1, cutoff=_MISSPELT)


def check_known(
    given: Iterable[str],
    kind: str,
    choices: Collection[str],
    *,
    shown: Callable[[str], str] = str,
    where: str = "",
    others: Collection[str] = (),
    advice: str = "",
) -> None:
    """Refuse names that are neither a setting nor the predecessor's name of one.

    Args:
        given: The names.
        kind: What they are.
        choices: The names of the settings.
        shown: Returns a name as it is written.
        where: The end of the sentence, such as a file.
        others: Further names that one may have misspelt.
        advice: A further sentence about a name that is not misspelt.

    Raises:
        ConfigurationError: A name is unknown; the sentence names the nearest known one.
    """
    for name in given:
        if name in _QUANTISE:
            raise ConfigurationError(
                f"Unknown {kind} {shown(name)}{where}: a quantised checkpoint is recognised "
                f"without it, and {shown('weights_dtype')} int8 or int4 quantises one that is not."
            )
        if name not in choices and name not in ALIASES:
            own = (*choices, *ALIASES)
            misspelt = difflib.get_close_matches(name, (*own, *others), n=1, cutoff=_MISSPELT)
            near = misspelt or difflib.get_close_matches(name, own, n=1, cutoff=0.5)
            hint = f"; did you mean {shown(near[0])}?" if near else "."
            more = "" if misspelt else advice
            raise ConfigurationError(f"Unknown {kind} {shown(name)}{where}{hint}{more}")


def by_field(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by the names of the settings, not by their aliases."""
    return {ALIASES.get(name, name): value for name, value in given.items()}


def own_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return our variables, without those that Kubernetes sets for Services with similar names.

    Other servers' variables stand for the settings that they set; our own names win.
    """
    theirs: dict[str, Any] = {
        name: [environ[key]] if key in _WHOLE and environ[key].strip() else environ[key]
        for key, name in VARIABLES.items()
        if key in environ
    }
    return theirs | {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not _SERVICE_LINK.fullmatch(f"{name}={value}")
    }
