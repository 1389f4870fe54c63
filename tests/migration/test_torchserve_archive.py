"""What is found in an archive, and of a server's configuration: which entry is this model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from predictor.errors import ArchiveError, ConfigurationError
from predictor.migration.archive import open_archive
from predictor.migration.torchserve_archive import TorchServeArchive, read_torchserve_archive
from tests.migration.packing import MANIFEST, manifest, store


def found(
    tmp_path: Path, content: dict[str, Any], ts_config: Path | None = None
) -> TorchServeArchive:
    file = store(tmp_path / "bloom.mar", {MANIFEST: manifest(), **content})
    with open_archive(file) as archive:
        return read_torchserve_archive(archive, file.name, ts_config)


def snapshot(models: Any, key: str = "model_snapshot") -> bytes:
    said = {"models": models} if key == "model_snapshot" else models
    return f"{key}={json.dumps(said)}".encode()


def test_nothing_but_a_manifest_is_needed(tmp_path: Path) -> None:
    legacy = found(tmp_path, {})

    assert (legacy.model_name, legacy.config_file, legacy.setup) == ("bloom", None, None)
    assert not {**legacy.config, **legacy.properties, **legacy.entry}
    assert legacy.handler.file is None


def test_files_are_read_by_their_usual_names(tmp_path: Path) -> None:
    legacy = found(
        tmp_path,
        {
            "model-config.yaml": b"batchSize: 2\n1: 2\nhandler:\n  a: b",
            "setup_config.json": b'\xef\xbb\xbf{"max_length": "80"}',
            "config.properties": b"job_queue_size = 10",
            "custom_handler.py": b"class A:\n  def handle(self): ...",
        },
    )

    assert legacy.config == {"batchSize": 2, "1": 2, "handler": {"a": "b"}}
    assert legacy.section("handler") == {"a": "b"}
    assert legacy.section("batchSize") == {}
    assert legacy.setup == {"max_length": "80"}
    assert legacy.properties == {"job_queue_size": "10"}
    assert [one.name for one in legacy.handler.classes] == ["A"]


def test_a_configuration_is_read_by_the_manifests_name_for_it(tmp_path: Path) -> None:
    legacy = found(
        tmp_path,
        {
            MANIFEST: manifest(configFile="mine.yaml", handler="handlers:serve"),
            "mine.yaml": b"",
            "model-config.yaml": b"batchSize: 2",
            "handlers.py": b"def serve(data, context): ...",
        },
    )

    assert (legacy.config_file, legacy.config) == ("mine.yaml", {})
    assert (legacy.handler.file, legacy.handler.functions) == ("handlers.py", ("serve",))


OURS, OTHER = {"marName": "bloom.mar", "batchSize": 2}, {"marName": "other.mar", "batchSize": 3}
NEXT = {"marName": "next.mar", "batchSize": 4, "defaultVersion": True}


@pytest.mark.parametrize("key", ["model_snapshot", "models"])
@pytest.mark.parametrize(
    ("models", "batch", "others"),
    [
        ({"bloom": {"1.0": OURS}, "other": {"1.0": OTHER}}, 2, ("other",)),
        ({"renamed": {"1.0": OURS}}, 2, ()),
        ({"bloom": {"2.0": NEXT, "1.0": OTHER}}, 3, ()),
        ({"bloom": {"2.0": NEXT, "3.0": OTHER}}, 4, ()),
        ({"bloom": {"2.0": OTHER}}, 3, ()),
        ({"other": {"1.0": OTHER}}, None, ("other",)),
        ({"bloom": {"1.0": []}}, None, ("bloom",)),
        ({"bloom": 1}, None, ("bloom",)),
        ({}, None, ()),
    ],
)
def test_the_entry_of_this_archive_is_found(
    tmp_path: Path, key: str, models: Any, batch: int | None, others: tuple[str, ...]
) -> None:
    legacy = found(tmp_path, {"config.properties": snapshot(models, key)})

    assert (legacy.entry.get("batchSize"), legacy.others) == (batch, others)


@pytest.mark.parametrize("blank", [b"model_snapshot=", b"models= \nmodel_snapshot=\\\n"])
def test_a_snapshot_of_nothing_is_none(tmp_path: Path, blank: bytes) -> None:
    legacy = found(tmp_path, {"config.properties": blank})

    assert (legacy.entry, legacy.others) == ({}, ())


def test_a_date_is_a_text(tmp_path: Path) -> None:
    legacy = found(tmp_path, {"model-config.yaml": b"a: 2001-99-99\n2001-01-01: {2001-01-01: 1}"})

    assert legacy.config == {"a": "2001-99-99", "2001-01-01": {"2001-01-01": 1}}


def test_a_configuration_that_is_named_is_read_instead(tmp_path: Path) -> None:
    file = tmp_path / "20261126-startup.cfg"
    file.write_bytes(snapshot({"bloom": {"1.0": OURS}}))
    legacy = found(tmp_path, {"config.properties": b"job_queue_size=1"}, file)

    assert legacy.properties_file == "20261126-startup.cfg"
    assert legacy.entry == OURS
    assert "job_queue_size" not in legacy.properties


def test_a_configuration_of_any_size_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1024**4)

    with pytest.raises(ArchiveError, match="is too large for a configuration"):
        found(tmp_path, {}, file)


@pytest.mark.parametrize(("name", "why"), [("gone", "No such file"), (".", "Is a directory")])
def test_a_configuration_that_cannot_be_read_is_said(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot be read: {why}"):
        found(tmp_path, {}, tmp_path / name)


def test_a_model_store_is_told_from_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "model-store"
    folder.mkdir()
    store(folder / "bloom.mar", {MANIFEST: manifest()})
    with open_archive(folder) as archive, pytest.raises(ArchiveError, match=r"import 'bloom\.mar'"):
        read_torchserve_archive(archive, folder.name, None)
