"""The settings in a TorchServe archive, parsed but not yet mapped to settings of the predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from predictor.migration.handler import Handler

MANIFEST = "MAR-INF/MANIFEST.json"
SETUP_CONFIG = "setup_config.json"
PROPERTIES = "config.properties"
MODEL_CONFIG = "model-config.yaml"


@dataclass(frozen=True, slots=True)
class TorchServeArchive:
    """The settings of one archive and, if given, of the server that served it.

    Attributes:
        name: The archive's file name.
        manifest: ``MANIFEST.json``.
        model: The manifest's object ``model``.
        config_file: The archive's path of the model's own configuration; None if there is none.
        config: The content of that file.
        setup: ``setup_config.json``; None if there is none.
        properties_file: The file name of the server's configuration.
        properties: The content of that file.
        entry: This model's entry in the server's snapshot.
        other_models: The names of the other models in that snapshot.
        handler: The parsed source of the handler.
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
    other_models: tuple[str, ...] = ()
    handler: Handler = field(default_factory=Handler)

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the model's configuration; empty if there is none."""
        section = self.config.get(name)
        return section if isinstance(section, dict) else {}

    @property
    def model_name(self) -> str:
        """The model's name in every URL."""
        return str(self.model["modelName"])
