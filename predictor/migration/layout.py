"""The model's place in an archive: the folder of the shallowest ``config.json``.

It lies in the archive itself or in a zip archive within it (``model.zip``), which is never unpacked
to disk as a whole.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from predictor.errors import ArchiveError
from predictor.migration.archive import Archive
from predictor.migration.display import one_line
from predictor.migration.torchserve_archive import (
    MODEL_CONFIG,
    PROPERTIES,
    SETUP_CONFIG,
    TorchServeArchive,
)

CONFIG = "config.json"
HELM_VALUES = "helm-values.yaml"
INFERENCE_SERVICE = "inferenceservice.yaml"
REPORT = "torchserve-report.md"

WRITTEN = frozenset({SETUP_CONFIG, HELM_VALUES, INFERENCE_SERVICE, REPORT})
"""The files that an import writes. A file of the model with such a name is left out."""

_MAX_JSON = 64 * 1024**2
"""Bytes of a JSON file, which is read whole. The largest tokenizers have half of it."""

_INNER = "model.zip"
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Model:
    """The model of an archive.

    Attributes:
        archive: The archive that holds its files: the given one or one within it.
        files: Each file's path in the model directory, by its path in that archive.
        model_id: The repository on the hub, if the archive names one instead of holding files.
    """

    archive: Archive
    files: Mapping[str, str]
    model_id: str | None = None


@contextlib.contextmanager
def find_model(archive: Archive, source: TorchServeArchive) -> Iterator[Model]:
    """Give the model of an archive.

    Args:
        archive: The archive.
        source: Its settings.

    Raises:
        ArchiveError: The archive holds no model, or more than one.
    """
    config = _config_in(archive, source)
    if config is not None:
        yield _model(archive, config, _torchserve_files(source))
        return
    inner_path = _inner_archive(archive)
    if inner_path is not None:
        with archive.inner(inner_path) as inner:
            config = _config_in(inner, source)
            if config is None:
                raise ArchiveError(
                    f"{inner_path} in {archive.name} holds no {CONFIG}, so no model."
                )
            yield _model(inner, config, frozenset())
        return
    yield Model(archive, {}, _hub_id(archive, source))


def _inner_archive(archive: Archive) -> str | None:
    if _INNER in archive.members:
        return _INNER
    paths = [path for path in archive.members if path.endswith(".zip")]
    return paths[0] if len(paths) == 1 else None


def _hub_id(archive: Archive, source: TorchServeArchive) -> str:
    """Return the repository on the hub from which the handler loaded the model."""
    sections = (source.section("handler"), source.setup or {})
    for name in (section.get("model_name") for section in sections):
        if isinstance(name, str) and _HUB_ID.fullmatch(name):
            return name
    for section in sections:
        for key in ("model_path", "model_dir"):
            if isinstance(section.get(key), str) and section[key]:
                raise _outside(archive, key, section[key], in_setup=section is sections[1])
    raise ArchiveError(
        f"{archive.name} holds no model: neither {CONFIG} nor a {_INNER} with one, and its "
        "configuration names no model of the hub."
    )


def _outside(archive: Archive, key: str, folder: str, *, in_setup: bool) -> ArchiveError:
    settings = f" with this {SETUP_CONFIG} in it" if in_setup else ""
    return ArchiveError(
        f"{archive.name} holds no model: {key} names {one_line(folder, 64)!r}, a folder outside of "
        f"the archive. A copy of that folder{settings} can be served (predictor serve --model_dir)."
    )


def _config_in(archive: Archive, source: TorchServeArchive) -> str | None:
    handlers = _handlers_config(archive.members, source)
    if handlers is not None:
        return handlers
    configs = [path for path in archive.members if posixpath.basename(path) == CONFIG]
    depth = min((path.count("/") for path in configs), default=0)
    shallowest = sorted(path for path in configs if path.count("/") == depth)
    if len(shallowest) > 1:
        first, second = (repr(one_line(path, 64)) for path in shallowest[:2])
        raise ArchiveError(
            f"{archive.name} holds more than one model: {first} and {second}; say with model_path "
            "in the section handler which is served."
        )
    return shallowest[0] if shallowest else None


def _handlers_config(members: Iterable[str], source: TorchServeArchive) -> str | None:
    """Return the config in the folder that the handler read, if the archive holds it."""
    section = source.section("handler")
    for key in ("model_path", "model_dir"):
        if isinstance(section.get(key), str):
            config = posixpath.normpath(posixpath.join(section[key], CONFIG))
            if config in members:
                return config
    return None


def _model(archive: Archive, config: str, excluded: frozenset[str]) -> Model:
    folder = posixpath.dirname(config)
    prefix = f"{folder}/" if folder else ""
    targets = {
        path: path.removeprefix(prefix)
        for path in archive.members
        if path.startswith(prefix) and path not in excluded and not path.startswith("MAR-INF/")
    }
    files = {
        path: target for path, target in targets.items() if target.partition("/")[0] not in WRITTEN
    }
    for path, target in files.items():
        if target.endswith(".json") and archive.members[path].size > _MAX_JSON:
            raise archive.refusal(path, "is larger than any JSON file of a model")
    return Model(archive, files)


def _torchserve_files(source: TorchServeArchive) -> frozenset[str]:
    """Return the files at an archive's root that belong to TorchServe, not to the model."""
    named = (
        source.handler.file,
        source.config_file,
        *(source.model.get(key) for key in ("requirementsFile", "modelFile")),
    )
    usual = (SETUP_CONFIG, PROPERTIES, MODEL_CONFIG, _INNER, "requirements.txt")
    return frozenset([*usual, *(name for name in named if isinstance(name, str))])
