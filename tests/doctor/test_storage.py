"""The offload volume, temporary files and the model directory."""

from __future__ import annotations

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


def test_a_model_that_is_not_mounted_is_a_failure(tmp_path: Path) -> None:
    assert storage.check_model_directory(settings(model_dir=tmp_path)).state == "failure"
    (tmp_path / "config.json").write_text("{}")
    assert storage.check_model_directory(settings(model_dir=tmp_path)).state == "ok"
    assert storage.check_model_directory(settings(model_id="org/model")).state == "skipped"
