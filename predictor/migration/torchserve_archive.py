"""What TorchServe's files say: read and parsed, and not yet judged.

Each file that is malformed ends the import in one sentence. Nothing in them is executed: JSON, YAML
without tags that make objects, Java's properties, and Python that is only parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from predictor.errors import ArchiveError, ConfigurationError, reason_of
from predictor.migration.archive import Archive
from predictor.migration.handler import Handler, read_handler
from predictor.migration.mapping import one_line
from predictor.migration.properties import parse_properties

MANIFEST = "MAR-INF/MANIFEST.json"
SETUP_CONFIG = "setup_config.json"
PROPERTIES = "config.properties"
MODEL_CONFIG = "model-config.yaml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
"""TorchServe's own rule for names of models."""

_DEEPEST, _MOST_EVENTS = 32, 20_000
_LONG_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxXob_:]{300,}")
"""In base 16 YAML takes numbers that Python then refuses to write."""

_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
"""What YAML calls the kinds of values that JSON has."""

_ARCHIVES = (".mar", ".tar.gz")
"""What the names in a model store end in."""

_LARGEST = 1024**2

_Text = TypeVar("_Text", str, bytes)


@dataclass(frozen=True, slots=True)
class TorchServeArchive:
    """What was found.

    Attributes:
        name: The archive's file name.
        manifest: ``MANIFEST.json``.
        model: Its object of that name.
        config_file: Where in the archive the model's own configuration was; None for nowhere.
        config: What it says.
        setup: ``setup_config.json``; None where there is none.
        properties_file: The file name of the server's configuration.
        properties: What it says.
        entry: What its snapshot of the management API says of this model.
        others: The names of other models in that snapshot.
        handler: What the handler's source shows.
    """

    name: str
    manifest: Mapping[str, Any]
    model: Mapping[str, Any]
    config_file: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    setup: Mapping[str, Any] | None = None
    properties_file: str = PROPERTIES
    properties: Mapping[str, str] = field(default_factory=dict)
    entry: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    handler: Handler = field(default_factory=Handler)

    def section(self, name: str) -> Mapping[str, Any]:
        """Returns a section of the model's configuration; empty where there is none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def model_name(self) -> str:
        """The name in every URL."""
        return str(self.model["modelName"])


def read_torchserve_archive(
    archive: Archive, name: str, ts_config: Path | None
) -> TorchServeArchive:
    """Returns what an archive's files say.

    Args:
        archive: The archive.
        name: Its file name.
        ts_config: The server's configuration or snapshot; None for that in the archive, if any.

    Raises:
        ArchiveError: A file is malformed, or there is no manifest.
        ConfigurationError: `ts_config` cannot be read.
    """
    if MANIFEST not in archive.members:
        within = next((path for path in archive.members if path.endswith(_ARCHIVES)), None)
        hint = f"; import {one_line(within, 64)!r} in it" if within else ""
        raise ArchiveError(f"{name} is no archive of TorchServe's: it has no {MANIFEST}{hint}.")
    manifest = parse_json(archive.read(MANIFEST), MANIFEST)
    model = _model_of(manifest)
    config_file = _config_file(archive, model)
    config = {} if config_file is None else _yaml(archive.read(config_file), config_file)
    setup = None
    if SETUP_CONFIG in archive.members:
        setup = parse_json(archive.read(SETUP_CONFIG), SETUP_CONFIG)
    file, properties = _properties_of(archive, ts_config)
    entry, others = _entry(_snapshot(properties, file), name, model)
    handler = read_handler(archive, str(model.get("handler", "")))
    return TorchServeArchive(
        name, manifest, model, config_file, config, setup, file, properties, entry, others, handler
    )


def _model_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    model = manifest.get("model")
    if not isinstance(model, dict):
        raise ArchiveError(f"{MANIFEST} describes no model.")
    name = model.get("modelName")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArchiveError(f"{MANIFEST} gives the model no name that TorchServe takes.")
    return model


def _config_file(archive: Archive, model: Mapping[str, Any]) -> str | None:
    named = model.get("configFile")
    if named is None:
        return MODEL_CONFIG if MODEL_CONFIG in archive.members else None
    if not isinstance(named, str) or named not in archive.members:
        shown = one_line(str(named), 64)
        raise ArchiveError(f"{MANIFEST} names the configuration {shown!r}, which is not there.")
    return named


def _properties_of(archive: Archive, ts_config: Path | None) -> tuple[str, dict[str, str]]:
    if ts_config is None:
        if PROPERTIES not in archive.members:
            return PROPERTIES, {}
        return PROPERTIES, _properties(archive.read(PROPERTIES), PROPERTIES)
    try:
        with ts_config.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"{ts_config} cannot be read: {error.strerror}.") from None
    if len(content) > _LARGEST:
        raise ArchiveError(f"{ts_config} is too large for a configuration.")
    return ts_config.name, _properties(content, str(ts_config))


def parse_json(content: bytes, file: str) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Raises:
        ArchiveError: It holds none.
    """
    return _object(content, file, "JSON", json.loads)


def _yaml(content: bytes, file: str) -> dict[str, Any]:
    if not content.strip():
        return {}
    return _object(content, file, "YAML", _load_yaml)


class _PlainLoader(yaml.SafeLoader):
    """Makes what JSON has, of YAML; a date is the text that it is written as."""


_PlainLoader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
} | {"tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str}


def _load_yaml(content: bytes) -> Any:
    _check_yaml(content)
    try:
        return yaml.load(content, _PlainLoader)  # noqa: S506 - it is a safe one, and less
    except (LookupError, TypeError, AttributeError, ArithmeticError):
        raise ValueError("it has a value that is not what its tag or form says") from None


def _check_yaml(content: bytes) -> None:
    """Refuses what PyYAML takes any amount of time or memory for; its events come one by one."""
    depth = 0
    for number, event in enumerate(yaml.parse(content, yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or number > _MOST_EVENTS:
            raise ValueError("it is longer or nested more deeply than a configuration is")
        if isinstance(event, yaml.AliasEvent):  # with merge keys a few lines are terabytes
            raise ValueError("it has aliases, which are not read")
        if isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value):
            raise ValueError("it has a number of hundreds of digits")


def _object(content: _Text, file: str, kind: str, load: Callable[[_Text], Any]) -> dict[str, Any]:
    try:
        found = load(content)
        if isinstance(found, dict):
            return {str(key): value for key, value in found.items()}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ArchiveError(f"{file} cannot be read as {kind}: {_reason(error)}.") from None
    raise ArchiveError(f"{file} must hold one {kind} object.")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return one_line(reason_of(error), 160).rstrip(".")


def _properties(content: bytes, file: str) -> dict[str, str]:
    try:
        return parse_properties(content.decode("latin-1"))
    except ValueError as error:
        raise ArchiveError(f"{file} cannot be read as properties: {_reason(error)}.") from None


def _snapshot(properties: Mapping[str, str], file: str) -> dict[str, Any]:
    """The models that a server's configuration registers, by name and version."""
    for key in ("model_snapshot", "models"):
        if properties.get(key, "").strip():
            found = _object(properties[key], f"{key} in {file}", "JSON", json.loads)
            models = found.get("models", {}) if key == "model_snapshot" else found
            if not isinstance(models, dict):
                raise ArchiveError(f"{key} in {file} must hold an object of models.")
            return models
    return {}


def _entry(
    models: Mapping[str, Any], name: str, model: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The entry that is this archive's, by its file's name or the model's, and other models."""
    entries = [
        (model_name, version, entry)
        for model_name, versions in models.items()
        for version, entry in (versions.items() if isinstance(versions, dict) else ())
        if isinstance(entry, dict)
    ]
    ours = [one for one in entries if one[2].get("marName") == name]
    ours = ours or [one for one in entries if one[0] == model["modelName"]]
    ours.sort(
        key=lambda one: (one[1] == model.get("modelVersion"), one[2].get("defaultVersion") is True)
    )
    if not ours:
        return {}, tuple(models)
    return dict(ours[-1][2]), tuple(other for other in models if other != ours[-1][0])
