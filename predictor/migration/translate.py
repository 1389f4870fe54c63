"""Translate TorchServe's settings into settings, a deployment and the report's rows. Pure.

The precedence is TorchServe's. From weak to strong: ``config.properties``, the model's own
configuration, the model's entry in a snapshot or under ``models``. ``setup_config.json`` was the
handler's. Its keys stay as they are and take precedence over all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from predictor.migration.mapping import UNKNOWN, KeyMapping, Row, Rule, changed, dropped, kept
from predictor.migration.rules import frontend, handler, manifest, server, setup
from predictor.migration.torchserve_archive import MANIFEST, SETUP_CONFIG, TorchServeArchive
from predictor.settings_sources import ALIASES

_FROM_HUB = kept("`model_id`: the archive holds no model, so the hub's is fetched")


@dataclass(frozen=True, slots=True)
class Translation:
    """The result of translating TorchServe's settings.

    Attributes:
        name: The model's name in every URL.
        setup_config: The new ``setup_config.json``.
        gpus: The number of GPUs that TorchServe gave the model.
        rows: The outcome for each key, file by file.
    """

    name: str
    setup_config: dict[str, Any]
    gpus: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class _MappedKey:
    """A key of one file, with its mapping."""

    file: str
    key: str
    value: Any
    mapping: KeyMapping

    def row(self) -> Row:
        return self.mapping.row(self.file, self.key, self.value)


def translate(
    source: TorchServeArchive,
    *,
    positions: int | None = None,
    model_id: str | None = None,
    continues_prompts: bool = True,
) -> Translation:
    """Return the settings, the deployment's GPUs and the rows that follow from an archive.

    Args:
        source: The archive's settings.
        model_id: The repository on the hub to serve, if the archive holds no model.
        positions: The model's maximum number of positions in tokens; None if it has no such limit
            or the limit is not known yet.
        continues_prompts: Whether the model may be one whose replies continue prompts.
    """
    mapped = list(_map_all(source, model_id))
    settings: dict[str, Any] = {"torchserve_api": True}
    if model_id is not None:
        settings["model_id"] = model_id
    generation: dict[str, Any] = {}
    for one in mapped:
        settings |= one.mapping.settings
        generation |= one.mapping.generation
    if generation:
        settings["override_generation_config"] = generation
    if setup.is_accelerate_example(source):
        settings["torchserve_semantics"] = True
    if positions is not None and settings.get("max_model_len", 0) > positions:
        settings["max_model_len"] = positions
    overrides = _override_names(source)
    weaker = {key: value for key, value in settings.items() if key not in overrides}
    return Translation(
        source.model_name,
        weaker | setup.kept_settings(source),
        frontend.gpus(source),
        (
            *(one.row() for one in mapped),
            *manifest.rows(source, continues_prompts=continues_prompts),
        ),
    )


def _map_all(source: TorchServeArchive, model_id: str | None) -> Iterator[_MappedKey]:
    """Yield every key with its mapping, the file of lowest precedence first."""
    yield from _manifest(source)
    yield from _properties(source)
    yield from _config(source, model_id)
    yield from _entry(source)
    for key, value in (source.setup or {}).items():
        mapping = setup.map_key(key, value, source)
        if key == "model_name" and value == model_id:
            mapping = _FROM_HUB
        yield _MappedKey(SETUP_CONFIG, key, value, mapping)


def _manifest(source: TorchServeArchive) -> Iterator[_MappedKey]:
    for key, value in source.manifest.items():
        if key != "model":
            mapping = _apply(manifest.RULES, key, value, source)
            yield _MappedKey(MANIFEST, key, value, mapping)
    for key, value in source.model.items():
        mapping = _apply(manifest.MODEL, key, value, source)
        yield _MappedKey(MANIFEST, f"model.{key}", value, mapping)


def _properties(source: TorchServeArchive) -> Iterator[_MappedKey]:
    for key, value in source.properties.items():
        mapping = _overridden(key, source) or _apply(server.RULES, key, value, source)
        yield _MappedKey(source.properties_file, key, value, mapping)


def _overridden(key: str, source: TorchServeArchive) -> KeyMapping | None:
    """Return the mapping of a server's default that the model's own files override, or None."""
    frontend_key = frontend.FROM_PROPERTIES.get(key)
    if frontend_key is None:
        return None
    if not any(frontend.is_set(one, frontend_key) for one in (source.entry, source.config)):
        return None
    return changed(f"the model's own {frontend_key} is stronger")


def _entry(source: TorchServeArchive) -> Iterator[_MappedKey]:
    file = _entry_file(source)
    for key, value in source.entry.items():
        if key in frontend.RULES:
            yield from _frontend(file, key, value, source)
        else:
            yield _MappedKey(file, key, value, _apply(frontend.ENTRY, key, value, source))


def _entry_file(source: TorchServeArchive) -> str:
    return f"{source.properties_file}: snapshot"


def _config(source: TorchServeArchive, model_id: str | None) -> Iterator[_MappedKey]:
    file = source.config_file or ""
    for key, value in source.config.items():
        if key in frontend.RULES and frontend.is_set(source.entry, key):
            yield _MappedKey(file, key, value, changed(f"{_entry_file(source)} is stronger"))
        elif key in frontend.RULES:
            yield from _frontend(file, key, value, source)
        elif key == "handler":
            yield from _section(file, key, value, _handler_rule(source, model_id))
        elif key in handler.SECTIONS:
            yield from _section(file, key, value, lambda *_, key=key: handler.SECTIONS[key])
        else:
            yield _MappedKey(file, key, value, UNKNOWN)


def _frontend(file: str, key: str, value: Any, source: TorchServeArchive) -> Iterator[_MappedKey]:
    if not frontend.fits(key, value):
        ignored = dropped("TorchServe ignored it too: not what this key takes")
        yield _MappedKey(file, key, value, ignored)
    elif key == "torchrun":
        for name, member in value.items():
            rule = frontend.TORCHRUN.get(str(name), frontend.RULES[key])
            yield _MappedKey(file, f"{key}.{name}", member, rule(member, source))
    else:
        yield _MappedKey(file, key, value, frontend.RULES[key](value, source))


def _section(
    file: str, section: str, value: Any, map_key: Callable[[str, Any], KeyMapping]
) -> Iterator[_MappedKey]:
    if not isinstance(value, dict):
        yield _MappedKey(file, section, value, map_key("", value))
        return
    for key, member in value.items():
        yield _MappedKey(file, f"{section}.{key}", member, map_key(str(key), member))


def _handler_rule(
    source: TorchServeArchive, model_id: str | None
) -> Callable[[str, Any], KeyMapping]:
    overrides = _override_names(source)

    def map_key(key: str, value: Any) -> KeyMapping:
        if key == "model_name" and value == model_id:
            return _FROM_HUB
        mapping = _apply(handler.RULES, key, value, source)
        if any(name in overrides for name in mapping.settings):
            return changed(f"{SETUP_CONFIG} is stronger")
        return mapping

    return map_key


def _override_names(source: TorchServeArchive) -> set[str]:
    """Return the settings that ``setup_config.json`` sets, by their own names."""
    return {ALIASES.get(key, key) for key in setup.kept_settings(source)}


def _apply(
    rules: Mapping[str, Rule], key: str, value: Any, source: TorchServeArchive
) -> KeyMapping:
    return rules[key](value, source) if key in rules else UNKNOWN
