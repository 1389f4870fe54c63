"""``setup_config.json``: the keys of TorchServe's Accelerate example and any setting.

Settings that allow code to run or set the server's addresses are not taken from an archive.
"""

from __future__ import annotations

from typing import Any

from predictor.migration.mapping import UNKNOWN, KeyMapping, Rule, always, changed, dropped, kept
from predictor.migration.rules import task
from predictor.migration.rules.handler import OUTSIDE, count, is_below
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.settings import names
from predictor.settings_sources import ALIASES

_PICKLE = dropped("say `--allow_pickle` yourself if you trust the model's author")
_REMOTE = dropped("say `--trust_remote_code` yourself if you trust the model's author")
_FOLDER = kept("the setting of this name; in a pod a volume, at /offload")
_LISTENS = changed("`--host`, `--http_port` and `--grpc_port` say where the server listens")

RULES: dict[str, Rule] = {
    "low_cpu_mem_usage": always(kept("always so")),
    "offload_state_dict": always(kept("always so")),
    "offload_folder": lambda value, _: _FOLDER if is_below(value) else OUTSIDE,
    "allow_pickle": always(_PICKLE),
    "trust_remote_code": always(_REMOTE),
    "enable_load_unload": always(dropped("say `--enable_load_unload` yourself")),
    "model_name": always(changed("the name in every URL is the manifest's")),
    "model_dir": always(changed("the model is that in this directory")),
    "model_id": always(changed("the model is that in this directory")),
    "model_path": always(changed("the model is that in this directory")),
    **task.RULES,
    "host": always(_LISTENS),
    "http_port": always(_LISTENS),
    "grpc_port": always(_LISTENS),
    "hf_token": always(dropped("the environment variable HF_TOKEN, or `hubToken` of the chart")),
}
"""The rules for keys that are no setting, or that are not mapped as other settings are."""


def map_key(key: str, value: Any, source: TorchServeArchive) -> KeyMapping:
    """Return the mapping of a key."""
    if value is None:
        return dropped("it says nothing")
    if key in RULES:
        return RULES[key](value, source)
    if key not in names():
        return UNKNOWN
    field = ALIASES.get(key, key)
    return kept(f"`{field}`" if field != key else "the setting of this name")


def kept_settings(source: TorchServeArchive) -> dict[str, Any]:
    """Return the keys that stay in the new file with their values, and those that they set."""
    stay: dict[str, Any] = {}
    for key, value in (source.setup or {}).items():
        mapping = map_key(key, value, source)
        if mapping.settings:
            stay |= mapping.settings
        elif key in names() and mapping.outcome == "taken over":
            stay[key] = value
    return stay


def is_accelerate_example(source: TorchServeArchive) -> bool:
    """Return whether the handler is like that of TorchServe's Accelerate example."""
    return count((source.setup or {}).get("max_length")) is not None
