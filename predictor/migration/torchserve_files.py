"""Read the settings files of a TorchServe archive into a `TorchServeArchive`.

Nothing in them is executed. A malformed file ends the import with one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictor.errors import ArchiveError, ConfigurationError
from predictor.migration.archive import Archive
from predictor.migration.display import one_line
from predictor.migration.documents import parse_java_properties, parse_json, parse_yaml
from predictor.migration.handler import Handler, parse_handler
from predictor.migration.torchserve_archive import (
    MANIFEST,
    MODEL_CONFIG,
    PROPERTIES,
    SETUP_CONFIG,
    TorchServeArchive,
)

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
"""TorchServe's own rule for the names of models."""

_ARCHIVE_SUFFIXES = (".mar", ".tar.gz")
"""The suffixes of archives in a model store."""

_MAX_TS_CONFIG = 1024**2
"""Bytes of the server's configuration."""


def read_torchserve_archive(
    archive: Archive, name: str, ts_config: Path | None
) -> TorchServeArchive:
    """Return the settings in an archive.

    Args:
        archive: The archive.
        name: Its file name.
        ts_config: The server's configuration or snapshot; None to use the archive's, if any.

    Raises:
        ArchiveError: A file is malformed, or there is no manifest.
        ConfigurationError: `ts_config` cannot be read.
    """
    if MANIFEST not in archive.members:
        nested = next((path for path in archive.members if path.endswith(_ARCHIVE_SUFFIXES)), None)
        hint = f"; import {one_line(nested, 64)!r} in it" if nested else ""
        raise ArchiveError(f"{name} is no archive of TorchServe's: it has no {MANIFEST}{hint}.")
    manifest = parse_json(archive.read(MANIFEST), MANIFEST)
    model = _model_of(manifest)
    config_file = _config_file(archive, model)
    config = {} if config_file is None else parse_yaml(archive.read(config_file), config_file)
    setup = _setup_config(archive)
    properties_file, properties = _properties(archive, ts_config)
    entry, other_models = _entry(_registered_models(properties, properties_file), name, model)
    return TorchServeArchive(
        name=name,
        manifest=manifest,
        model=model,
        config_file=config_file,
        config=config,
        setup=setup,
        properties_file=properties_file,
        properties=properties,
        entry=entry,
        other_models=other_models,
        handler=_handler(archive, str(model.get("handler", ""))),
    )


def _model_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    model = manifest.get("model")
    if not isinstance(model, dict):
        raise ArchiveError(f"{MANIFEST} describes no model.")
    name = model.get("modelName")
    if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
        raise ArchiveError(f"{MANIFEST} gives the model no name that TorchServe takes.")
    return model


def _config_file(archive: Archive, model: Mapping[str, Any]) -> str | None:
    file = model.get("configFile")
    if file is None:
        return MODEL_CONFIG if MODEL_CONFIG in archive.members else None
    if not isinstance(file, str) or file not in archive.members:
        shown = one_line(str(file), 64)
        raise ArchiveError(f"{MANIFEST} names the configuration {shown!r}, which is not there.")
    return file


def _setup_config(archive: Archive) -> dict[str, Any] | None:
    if SETUP_CONFIG not in archive.members:
        return None
    return parse_json(archive.read(SETUP_CONFIG), SETUP_CONFIG)


def _handler(archive: Archive, name: str) -> Handler:
    """Return the parsed source of the manifest's handler, or only its name if it has no file."""
    module, _, function = name.partition(":")
    file = module if module.endswith(".py") else f"{module}.py"
    if file not in archive.members:
        return Handler(name)
    return parse_handler(archive.read(file), name, file, function or "handle")


def _properties(archive: Archive, ts_config: Path | None) -> tuple[str, dict[str, str]]:
    """Return the name and the content of the server's configuration."""
    if ts_config is None:
        if PROPERTIES not in archive.members:
            return PROPERTIES, {}
        return PROPERTIES, parse_java_properties(archive.read(PROPERTIES), PROPERTIES)
    try:
        with ts_config.open("rb") as stream:
            content = stream.read(_MAX_TS_CONFIG + 1)
    except OSError as error:
        raise ConfigurationError(f"{ts_config} cannot be read: {error.strerror}.") from None
    if len(content) > _MAX_TS_CONFIG:
        raise ArchiveError(f"{ts_config} is too large for a configuration.")
    return ts_config.name, parse_java_properties(content, str(ts_config))


def _registered_models(properties: Mapping[str, str], file: str) -> dict[str, Any]:
    """Return the models that a server's configuration registers, by name and version."""
    for key in ("model_snapshot", "models"):
        if properties.get(key, "").strip():
            document = parse_json(properties[key], f"{key} in {file}")
            models = document.get("models", {}) if key == "model_snapshot" else document
            if not isinstance(models, dict):
                raise ArchiveError(f"{key} in {file} must hold an object of models.")
            return models
    return {}


def _entry(
    models: Mapping[str, Any], name: str, model: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return this archive's entry, matched by file name or else by model, and the other models."""
    entries = [
        (model_name, version, entry)
        for model_name, versions in models.items()
        for version, entry in (versions.items() if isinstance(versions, dict) else ())
        if isinstance(entry, dict)
    ]
    matches = [one for one in entries if one[2].get("marName") == name]
    matches = matches or [one for one in entries if one[0] == model["modelName"]]
    if not matches:
        return {}, tuple(models)
    matches.sort(
        key=lambda one: (one[1] == model.get("modelVersion"), one[2].get("defaultVersion") is True)
    )
    model_name, _, entry = matches[-1]
    return dict(entry), tuple(other for other in models if other != model_name)
