"""``setup_config.json``: the seed's eight keys are settings here, and any setting may be said so.

What lets code run, and what says where a server listens, is not taken from an archive.
"""

from __future__ import annotations

from typing import Any

from predictor.migration.mapping import UNKNOWN, KeyMapping, Rule, always, nothing, otherwise, taken
from predictor.migration.rules.handler import OUTSIDE, count, is_below
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.settings import names
from predictor.settings_sources import ALIASES

_PICKLE = nothing("say `--allow_pickle` yourself if you trust the model's author")
_REMOTE = nothing("say `--trust_remote_code` yourself if you trust the model's author")
_FOLDER = taken("the setting of this name; in a pod a volume, at /offload")
_LISTENS = otherwise("`--host`, `--http_port` and `--grpc_port` say where the server listens")

RULES: dict[str, Rule] = {
    "low_cpu_mem_usage": always(taken("always so")),
    "offload_state_dict": always(taken("always so")),
    "offload_folder": lambda value, _: _FOLDER if is_below(value) else OUTSIDE,
    "allow_pickle": always(_PICKLE),
    "trust_remote_code": always(_REMOTE),
    "enable_load_unload": always(nothing("say `--enable_load_unload` yourself")),
    "model_name": always(otherwise("the name in every URL is the manifest's")),
    "model_dir": always(otherwise("the model is that in this directory")),
    "model_id": always(otherwise("the model is that in this directory")),
    "host": always(_LISTENS),
    "http_port": always(_LISTENS),
    "grpc_port": always(_LISTENS),
    "hf_token": always(nothing("the environment variable HF_TOKEN, or `hubToken` of the chart")),
}
"""How keys are judged that are no setting, or not as any other is."""


def judge(key: str, value: Any, legacy: TorchServeArchive) -> KeyMapping:
    """Returns what becomes of a key."""
    if value is None:
        return nothing("it says nothing")
    if key in RULES:
        return RULES[key](value, legacy)
    if key not in names():
        return UNKNOWN
    field = ALIASES.get(key, key)
    return taken(f"`{field}`" if field != key else "the setting of this name")


def kept(legacy: TorchServeArchive) -> dict[str, Any]:
    """Returns the keys that stay as they are."""
    return {
        key: value
        for key, value in (legacy.setup or {}).items()
        if key in names() and judge(key, value, legacy).outcome == "taken over"
    }


def is_seeds(legacy: TorchServeArchive) -> bool:
    """Returns whether the handler is of the kind of TorchServe's Accelerate example."""
    return count((legacy.setup or {}).get("max_length")) is not None
