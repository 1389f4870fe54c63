"""The settings read from an archive, and this model's entry in a server's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from predictor.errors import ArchiveError, ConfigurationError
from predictor.migration.archive_formats import open_archive
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.migration.torchserve_files import read_torchserve_archive
from tests.migration.packing import MANIFEST, manifest, store


def read_from(
    tmp_path: Path, content: dict[str, Any], ts_config: Path | None = None
) -> TorchServeArchive:
    file = store(tmp_path / "bloom.mar", {MANIFEST: manifest(), **content})
    with open_archive(file) as archive:
        return read_torchserve_archive(archive, file.name, ts_config)


def snapshot(models: Any, key: str = "model_snapshot") -> bytes:
    document = {"models": models} if key == "model_snapshot" else models
    return f"{key}={json.dumps(document)}".encode()


def test_nothing_but_a_manifest_is_needed(tmp_path: Path) -> None:
    source = read_from(tmp_path, {})

    assert (source.model_name, source.config_file, source.setup) == ("bloom", None, None)
    assert not {**source.config, **source.properties, **source.entry}
    assert source.handler.file is None


def test_files_are_read_by_their_usual_names(tmp_path: Path) -> None:
    source = read_from(
        tmp_path,
        {
            "model-config.yaml": b"batchSize: 2\n1: 2\nhandler:\n  a: b",
            "setup_config.json": b'\xef\xbb\xbf{"max_length": "80"}',
            "config.properties": b"job_queue_size = 10",
            "custom_handler.py": b"class A:\n  def handle(self): ...",
        },
    )

    assert source.config == {"batchSize": 2, "1": 2, "handler": {"a": "b"}}
    assert source.section("handler") == {"a": "b"}
    assert source.section("batchSize") == {}
    assert source.setup == {"max_length": "80"}
    assert source.properties == {"job_queue_size": "10"}
    assert [one.name for one in source.handler.classes] == ["A"]


def test_a_configuration_is_read_by_the_manifests_name_for_it(tmp_path: Path) -> None:
    source = read_from(
        tmp_path,
        {
            MANIFEST: manifest(configFile="mine.yaml", handler="handlers:serve"),
            "mine.yaml": b"",
            "model-config.yaml": b"batchSize: 2",
            "handlers.py": b"def serve(data, context): ...",
        },
    )

    assert (source.config_file, source.config) == ("mine.yaml", {})
    assert (source.handler.file, source.handler.functions) == ("handlers.py", ("serve",))


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
def test_the_entry_of_this_archive_is_chosen(
    tmp_path: Path, key: str, models: Any, batch: int | None, others: tuple[str, ...]
) -> None:
    source = read_from(tmp_path, {"config.properties": snapshot(models, key)})

    assert (source.entry.get("batchSize"), source.other_models) == (batch, others)


@pytest.mark.parametrize("blank", [b"model_snapshot=", b"models= \nmodel_snapshot=\\\n"])
def test_a_blank_snapshot_has_no_entry(tmp_path: Path, blank: bytes) -> None:
    source = read_from(tmp_path, {"config.properties": blank})

    assert (source.entry, source.other_models) == ({}, ())


def test_a_date_is_a_text(tmp_path: Path) -> None:
    source = read_from(
        tmp_path, {"model-config.yaml": b"a: 2001-99-99\n2001-01-01: {2001-01-01: 1}"}
    )

    assert source.config == {"a": "2001-99-99", "2001-01-01": {"2001-01-01": 1}}


def test_a_configuration_that_is_named_is_read_instead(tmp_path: Path) -> None:
    file = tmp_path / "20261126-startup.cfg"
    file.write_bytes(snapshot({"bloom": {"1.0": OURS}}))
    source = read_from(tmp_path, {"config.properties": b"job_queue_size=1"}, file)

    assert source.properties_file == "20261126-startup.cfg"
    assert source.entry == OURS
    assert "job_queue_size" not in source.properties


def test_a_huge_configuration_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1024**4)

    with pytest.raises(ArchiveError, match="is too large for a configuration"):
        read_from(tmp_path, {}, file)


@pytest.mark.parametrize(("name", "reason"), [("gone", "No such file"), (".", "Is a directory")])
def test_a_configuration_that_cannot_be_read_is_reported(
    tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot be read: {reason}"):
        read_from(tmp_path, {}, tmp_path / name)


def test_a_model_store_is_distinguished_from_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "model-store"
    folder.mkdir()
    store(folder / "bloom.mar", {MANIFEST: manifest()})
    with open_archive(folder) as archive, pytest.raises(ArchiveError, match=r"import 'bloom\.mar'"):
        read_torchserve_archive(archive, folder.name, None)
