"""The offload volume, temporary files and the model directory."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from predictor.doctor import storage
from predictor.weights.store import packing
from tests.doctor.conftest import Surround, settings


def test_a_volume_is_measured_and_left_as_it_was(surround: Surround, tmp_path: Path) -> None:
    flags = settings(offload_folder=tmp_path)
    assert storage.check_offload(flags, surround()).state == "ok"
    assert "/s, reads at " in storage.check_offload_speed(flags, surround()).finding
    assert list(tmp_path.iterdir()) == []


def test_a_volume_that_cannot_be_written_is_a_failure(surround: Surround) -> None:
    flags = settings(offload_folder="/proc/offload")
    check = storage.check_offload(flags, surround())
    assert check.state == "failure"
    assert storage.check_offload_speed(flags, surround()).state == "skipped"
    assert "cannot be written by user" in check.finding
    assert "fsGroup" in check.remedy


def test_a_volume_that_is_a_file_is_a_failure(surround: Surround, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert storage.check_offload(settings(offload_folder=file), surround()).state == "failure"


def test_a_volume_in_memory_is_a_warning(surround: Surround) -> None:
    check = storage.check_offload(settings(offload_folder="/dev/shm/doctor-test"), surround())
    assert check.state == "warning"
    Path("/dev/shm/doctor-test").rmdir()


def test_a_slow_volume_is_a_warning(
    surround: Surround, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk cannot be had, so the measurement stands in for one."""
    monkeypatch.setattr(packing, "measure_file", lambda _: 50e6)
    speed = storage.check_offload_speed(settings(offload_folder=tmp_path), surround())
    assert speed.state == "warning"
    assert "local NVMe" in speed.remedy


def test_without_an_offload_folder_nothing_is_measured(surround: Surround) -> None:
    for check in (storage.check_offload, storage.check_offload_speed):
        assert check(settings(), surround()).state == "skipped"


def test_temporary_files_that_cannot_be_written_are_a_failure(surround: Surround) -> None:
    assert storage.check_temporary(surround()).state == "ok"
    assert storage.check_temporary(surround(temporary=Path("/proc"))).state == "failure"


HEADER = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
SHARDS = ("model-1.safetensors", "model-2.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in two files, in a folder that every user may read."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    index = {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in SHARDS:
        (tmp_path / name).write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + bytes(4))
    return tmp_path


def test_a_model_that_is_not_mounted_is_a_failure(model: Path) -> None:
    check = storage.check_model_directory(settings(model_dir=model))
    assert (check.state, check.finding) == (
        "ok",
        f"{model} has 8 B of weights. Their files, and those of the configuration and tokenizer "
        "beside them, may be opened. Folders below were not checked.",
    )
    (model / "config.json").unlink()
    check = storage.check_model_directory(settings(model_dir=model))
    assert (check.state, check.finding) == ("failure", f"There is no {model}/config.json.")


@pytest.mark.parametrize("flag", ["model_id=org/model", "model_uri=s3://bucket/model"])
def test_a_model_that_is_fetched_needs_no_directory(flag: str) -> None:
    name, _, value = flag.partition("=")
    check = storage.check_model_directory(settings(model_dir="/nowhere", **{name: value}))
    assert check.state == "skipped"
    assert name in check.finding


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become someone who may not read")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *SHARDS])
def test_a_file_of_the_model_that_may_not_be_read_is_a_failure(model: Path, name: str) -> None:
    (model / name).chmod(0o000)
    os.seteuid(65534)
    try:
        check = storage.check_model_directory(settings(model_dir=model))
    finally:
        os.seteuid(0)
    assert check.state == "failure"
    assert f"{name} cannot be " in check.finding
    assert "Permission denied" in check.finding
    assert "Let user" in check.remedy


def test_weights_that_are_missing_are_a_failure(model: Path) -> None:
    (model / SHARDS[1]).unlink()
    check = storage.check_model_directory(settings(model_dir=model))
    assert (check.state, SHARDS[1] in check.finding) == ("failure", True)
    (model / "model.safetensors.index.json").unlink()
    check = storage.check_model_directory(settings(model_dir=model))
    assert (check.state, check.finding) == ("failure", f"{model} holds no weights.")
