"""Where in an archive the model lies: the folder of the shallowest ``config.json``.

It may be in the archive itself or in a zip archive within (``model.zip``), which is never written.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from predictor.errors import ArchiveError
from predictor.migration.archive import Archive
from predictor.migration.mapping import one_line
from predictor.migration.torchserve_archive import (
    MODEL_CONFIG,
    PROPERTIES,
    SETUP_CONFIG,
    TorchServeArchive,
)

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
HELM_VALUES = "helm-values.yaml"
INFERENCE_SERVICE = "inferenceservice.yaml"
REPORT = "torchserve-report.md"

WRITTEN = frozenset({SETUP_CONFIG, HELM_VALUES, INFERENCE_SERVICE, REPORT})
"""What an import writes itself; a file of the model that has such a name is left out."""

_LARGEST_JSON = 64 * 1024**2
"""Such files are read whole; the largest tokenizers have half of it."""

_INNER = "model.zip"
_HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Model:
    """The model of an archive.

    Attributes:
        archive: What holds its files: the archive, or one within.
        files: Where each of these goes in the model directory, by its path in that archive.
        model_id: The repository on the hub that is named instead; then there are no files.
    """

    archive: Archive
    files: Mapping[str, str]
    model_id: str | None = None


@contextlib.contextmanager
def find_model(archive: Archive, legacy: TorchServeArchive) -> Iterator[Model]:
    """Gives the model of an archive.

    Raises:
        ArchiveError: There is none, or there are two.
    """
    config = _config_of(archive, legacy)
    if config is not None:
        yield _model(archive, config, _torchserves(legacy))
        return
    inner = _inner_of(archive)
    if inner is not None:
        with archive.inner(inner) as within:
            config = _config_of(within, legacy)
            if config is None:
                raise ArchiveError(f"{inner} in {archive.where} holds no {CONFIG}, so no model.")
            yield _model(within, config, frozenset())
        return
    yield Model(archive, {}, _named(archive, legacy))


def _inner_of(archive: Archive) -> str | None:
    if _INNER in archive.members:
        return _INNER
    found = [path for path in archive.members if path.endswith(".zip")]
    return found[0] if len(found) == 1 else None


def _named(archive: Archive, legacy: TorchServeArchive) -> str:
    """The repository on the hub that the handler loaded the model from."""
    name = legacy.section("handler").get("model_name")
    if isinstance(name, str) and _HUB.fullmatch(name):
        return name
    raise ArchiveError(
        f"{archive.where} holds no model: neither {CONFIG} nor a {_INNER} with one, and its "
        "configuration names no model of the hub."
    )


def _config_of(archive: Archive, legacy: TorchServeArchive) -> str | None:
    wished = _wished(archive.members, legacy)
    if wished is not None:
        return wished
    found = [path for path in archive.members if posixpath.basename(path) == CONFIG]
    least = min((path.count("/") for path in found), default=0)
    nearest = sorted(path for path in found if path.count("/") == least)
    if len(nearest) > 1:
        raise ArchiveError(
            f"{archive.where} holds more than one model: {_short(nearest[0])} and "
            f"{_short(nearest[1])}; say with model_path in the section handler which is served."
        )
    return nearest[0] if nearest else None


def _wished(members: Iterable[str], legacy: TorchServeArchive) -> str | None:
    """The config in the folder that the handler read, where that is in the archive."""
    section = legacy.section("handler")
    for key in ("model_path", "model_dir"):
        if isinstance(section.get(key), str):
            config = posixpath.normpath(posixpath.join(section[key], CONFIG))
            if config in members:
                return config
    return None


def _short(path: str) -> str:
    return repr(one_line(path, 64))


def _model(archive: Archive, config: str, others: frozenset[str]) -> Model:
    folder = posixpath.dirname(config)
    prefix = f"{folder}/" if folder else ""
    targets = {
        path: path.removeprefix(prefix)
        for path in archive.members
        if path.startswith(prefix) and path not in others and not path.startswith("MAR-INF/")
    }
    files = {
        path: target for path, target in targets.items() if target.partition("/")[0] not in WRITTEN
    }
    for path, target in files.items():
        if target.endswith(".json") and archive.members[path].size > _LARGEST_JSON:
            raise archive.refusal(path, "is larger than any JSON file of a model")
    return Model(archive, files)


def _torchserves(legacy: TorchServeArchive) -> frozenset[str]:
    """The files at an archive's root that are TorchServe's and not the model's."""
    named = (
        legacy.handler.file,
        legacy.config_file,
        *(legacy.model.get(key) for key in ("requirementsFile", "modelFile")),
    )
    known = (SETUP_CONFIG, PROPERTIES, MODEL_CONFIG, _INNER, "requirements.txt")
    return frozenset([*known, *(name for name in named if isinstance(name, str))])
