"""From what TorchServe's files say to settings, a deployment and the report's rows. Pure.

Order of strength, as in TorchServe: ``config.properties``, the model's own configuration, the entry
of the model in a snapshot or under ``models``. ``setup_config.json`` was the handler's, stays as it
is and is strongest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from predictor.migration.mapping import UNKNOWN, KeyMapping, Row, Rule, nothing, otherwise, taken
from predictor.migration.rules import frontend, handler, manifest, server, setup
from predictor.migration.torchserve_archive import MANIFEST, SETUP_CONFIG, TorchServeArchive
from predictor.settings_sources import ALIASES

_Found = tuple[str, str, Any, KeyMapping]


@dataclass(frozen=True, slots=True)
class Translation:
    """What follows from TorchServe's files.

    Attributes:
        name: The name in every URL.
        setup_config: The new ``setup_config.json``.
        generation: What the new ``generation_config.json`` says besides the model's own.
        gpus: How many GPUs the model was given.
        rows: What became of each key, file by file.
    """

    name: str
    setup_config: dict[str, Any]
    generation: dict[str, Any]
    gpus: int
    rows: tuple[Row, ...]


def translate(
    legacy: TorchServeArchive, *, positions: int | None = None, model_id: str | None = None
) -> Translation:
    """Returns what follows from TorchServe's files.

    Args:
        legacy: The files.
        model_id: The repository on the hub that is served, where the archive holds no model.
        positions: How many tokens the model's positions are for; None where it has no such limit,
            or where that is not known yet.
    """
    found = list(_judged(legacy, model_id))
    settings: dict[str, Any] = {"torchserve_api": True}
    if model_id is not None:
        settings["model_id"] = model_id
    generation: dict[str, Any] = {}
    for *_, verdict in found:
        settings |= verdict.settings
        generation |= verdict.generation
    if setup.is_seeds(legacy):
        settings["torchserve_semantics"] = True
    if positions is not None and settings.get("max_model_len", 0) > positions:
        settings["max_model_len"] = positions
    kept = setup.kept(legacy)
    named = {ALIASES.get(key, key) for key in kept}
    return Translation(
        legacy.model_name,
        {key: value for key, value in settings.items() if key not in named} | kept,
        generation,
        frontend.gpus(legacy),
        (
            *(verdict.row(file, key, value) for file, key, value, verdict in found),
            *manifest.rows(legacy),
        ),
    )


def _judged(legacy: TorchServeArchive, model_id: str | None) -> Iterator[_Found]:
    """Yields every key with what becomes of it, the weakest file first."""
    yield from _manifest(legacy)
    yield from _properties(legacy)
    yield from _config(legacy, model_id)
    yield from _entry(legacy)
    for key, value in (legacy.setup or {}).items():
        yield SETUP_CONFIG, key, value, setup.judge(key, value, legacy)


def _manifest(legacy: TorchServeArchive) -> Iterator[_Found]:
    for key, value in legacy.manifest.items():
        if key != "model":
            yield MANIFEST, key, value, _by(manifest.RULES, key, value, legacy)
    for key, value in legacy.model.items():
        yield MANIFEST, f"model.{key}", value, _by(manifest.MODEL, key, value, legacy)


def _properties(legacy: TorchServeArchive) -> Iterator[_Found]:
    for key, value in legacy.properties.items():
        verdict = _by(server.RULES, key, value, legacy)
        yield legacy.properties_file, key, value, _unless_said(key, verdict, legacy)


def _unless_said(key: str, verdict: KeyMapping, legacy: TorchServeArchive) -> KeyMapping:
    """A server's default counts only for what the model's own files leave open."""
    meant = frontend.FROM_PROPERTIES.get(key)
    if meant and any(frontend.says(said, meant) for said in (legacy.entry, legacy.config)):
        return otherwise(f"the model's own {meant} is stronger")
    return verdict


def _entry(legacy: TorchServeArchive) -> Iterator[_Found]:
    file = _entry_file(legacy)
    for key, value in legacy.entry.items():
        if key in frontend.RULES:
            yield from _frontend(file, key, value, legacy)
        else:
            yield file, key, value, _by(frontend.ENTRY, key, value, legacy)


def _entry_file(legacy: TorchServeArchive) -> str:
    return f"{legacy.properties_file}: snapshot"


def _config(legacy: TorchServeArchive, model_id: str | None) -> Iterator[_Found]:
    file = legacy.config_file or ""
    for key, value in legacy.config.items():
        if key in frontend.RULES and frontend.says(legacy.entry, key):
            yield file, key, value, otherwise(f"{_entry_file(legacy)} is stronger")
        elif key in frontend.RULES:
            yield from _frontend(file, key, value, legacy)
        elif key == "handler":
            yield from _section(file, key, value, _handler(legacy, model_id))
        elif key in handler.SECTIONS:
            yield from _section(file, key, value, lambda *_, key=key: handler.SECTIONS[key])
        else:
            yield file, key, value, UNKNOWN


def _frontend(file: str, key: str, value: Any, legacy: TorchServeArchive) -> Iterator[_Found]:
    if not frontend.fits(key, value):
        yield file, key, value, nothing("TorchServe ignored it too: not what this key takes")
    elif key == "torchrun":
        for name, one in value.items():
            rule = frontend.TORCHRUN.get(str(name), frontend.RULES[key])
            yield file, f"{key}.{name}", one, rule(one, legacy)
    else:
        yield file, key, value, frontend.RULES[key](value, legacy)


def _section(
    file: str, section: str, value: Any, judge: Callable[[str, Any], KeyMapping]
) -> Iterator[_Found]:
    if not isinstance(value, dict):
        yield file, section, value, judge("", value)
        return
    for key, one in value.items():
        yield file, f"{section}.{key}", one, judge(str(key), one)


def _handler(legacy: TorchServeArchive, model_id: str | None) -> Callable[[str, Any], KeyMapping]:
    def judged(key: str, value: Any) -> KeyMapping:
        if key == "model_name" and value == model_id:
            return taken("`model_id`: the archive holds no model, so the hub's is fetched")
        verdict = _by(handler.RULES, key, value, legacy)
        if any(_is_said(name, legacy) for name in verdict.settings):
            return otherwise(f"{SETUP_CONFIG} is stronger")
        return verdict

    return judged


def _is_said(setting: str, legacy: TorchServeArchive) -> bool:
    return setting in {ALIASES.get(key, key) for key in setup.kept(legacy)}


def _by(rules: Mapping[str, Rule], key: str, value: Any, legacy: TorchServeArchive) -> KeyMapping:
    return rules[key](value, legacy) if key in rules else UNKNOWN
