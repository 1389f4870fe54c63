"""The model's place in an archive, and the files that are copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from predictor.errors import ArchiveError
from predictor.migration.archive_formats import open_archive
from predictor.migration.layout import find_model
from predictor.migration.torchserve_files import read_torchserve_archive
from tests.migration.packing import MANIFEST, manifest, store

CONFIG = "model-config.yaml"


def layout_of(tmp_path: Path, content: dict[str, Any], config: str = "") -> dict[str, str] | str:
    """Return each model file's path in the new directory, or the model's name on the hub."""
    members = {MANIFEST: manifest(), CONFIG: config.encode(), **content}
    file = store(tmp_path / "bloom.mar", members)
    with open_archive(file) as archive:
        source = read_torchserve_archive(archive, file.name, None)
        with find_model(archive, source) as model:
            return model.model_id or dict(model.files)


def inner(tmp_path: Path, content: dict[str, Any], name: str = "inner.zip") -> bytes:
    return store(tmp_path / name, content).read_bytes()


@pytest.mark.parametrize(
    ("content", "files"),
    [
        ({"config.json": b"", "w": b""}, {"config.json": "config.json", "w": "w"}),
        (
            {"m/config.json": b"", "m/w": b"", "x": b""},
            {"m/config.json": "config.json", "m/w": "w"},
        ),
        (
            {"m/config.json": b"", "m/d/config.json": b""},
            {"m/config.json": "config.json", "m/d/config.json": "d/config.json"},
        ),
        ({"m/config.json": b"", "mm/w": b""}, {"m/config.json": "config.json"}),
    ],
)
def test_it_is_the_folder_of_the_shallowest_config(
    tmp_path: Path, content: dict[str, bytes], files: dict[str, str]
) -> None:
    assert layout_of(tmp_path, content) == files


@pytest.mark.parametrize("name", ["model.zip", "weights.zip", "deep/weights.zip"])
def test_it_may_be_in_a_zip_within(tmp_path: Path, name: str) -> None:
    model = inner(tmp_path, {"root/config.json": b"", "root/w": b""})

    assert layout_of(tmp_path, {name: model}) == {"config.json": "config.json", "w": "w"}


def test_of_several_zips_it_is_in_that_of_the_usual_name(tmp_path: Path) -> None:
    model = inner(tmp_path, {"config.json": b""})

    assert layout_of(tmp_path, {"model.zip": model, "a.zip": b""}) == {"config.json": "config.json"}
    with pytest.raises(ArchiveError, match="holds no model"):
        layout_of(tmp_path, {"b.zip": model, "a.zip": b""})


def test_torchserve_files_are_left_out_at_the_root_only(tmp_path: Path) -> None:
    content = {
        "config.json": b"",
        "custom_handler.py": b"",
        "requirements.txt": b"",
        "setup_config.json": b"{}",
        "config.properties": b"",
        "own.py": b"",
        "d/config.properties": b"",
    }

    assert layout_of(tmp_path, content) == {
        "config.json": "config.json",
        "own.py": "own.py",
        "d/config.properties": "d/config.properties",
    }


@pytest.mark.parametrize(
    "name",
    ["setup_config.json", "helm-values.yaml", "inferenceservice.yaml", "torchserve-report.md"],
)
@pytest.mark.parametrize("below", ["", "/x"])
def test_files_that_an_import_writes_are_not_copied(tmp_path: Path, name: str, below: str) -> None:
    model = inner(tmp_path, {"config.json": b"", f"{name}{below}": b"{}"})

    assert layout_of(tmp_path, {"model.zip": model}) == {"config.json": "config.json"}


def test_a_json_file_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(64 * 1024**2 + 1)

    with pytest.raises(ArchiveError, match="is larger than any JSON file of a model"):
        layout_of(tmp_path, {"config.json": b"", "tokenizer.json": large})


@pytest.mark.parametrize("key", ["model_path", "model_dir"])
@pytest.mark.parametrize("path", ["b", "./b/", "a/../b"])
def test_of_several_folders_the_handlers_own_counts(tmp_path: Path, key: str, path: str) -> None:
    content = {"a/config.json": b"", "b/config.json": b""}
    config = f"handler: {{{key}: '{path}'}}"

    assert layout_of(tmp_path, content, config) == {"b/config.json": "config.json"}


@pytest.mark.parametrize("path", ["/b", "../b", "gone", ""])
def test_a_folder_that_is_not_in_the_archive_is_no_help(tmp_path: Path, path: str) -> None:
    content = {"a/config.json": b"", "b/config.json": b""}

    with pytest.raises(ArchiveError, match="more than one model: 'a/config"):
        layout_of(tmp_path, content, f"handler: {{model_path: '{path}'}}")


@pytest.mark.parametrize("name", ["org/name", "meta-llama/Meta-Llama-3-70B-Instruct"])
def test_a_model_of_the_hub_is_named_where_there_is_none(tmp_path: Path, name: str) -> None:
    assert layout_of(tmp_path, {}, f"handler: {{model_name: {name}}}") == name


@pytest.mark.parametrize("name", ["name", "a/b/c", "http://host/x", "1", "org/na me", "[org/name]"])
def test_other_names_are_not_taken_for_a_hub_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="and its configuration names no model of the hub"):
        layout_of(tmp_path, {}, f"handler: {{model_name: {name}}}")
