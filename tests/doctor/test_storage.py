"""The offload volume, temporary files and the model directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from predictor.doctor import storage
from tests.doctor.conftest import Surround, settings


def test_a_volume_is_measured_and_left_as_it_was(surround: Surround, tmp_path: Path) -> None:
    checks = list(storage.check_offload(settings(offload_folder=tmp_path), surround()))
    assert [check.name for check in checks] == ["offload volume", "offload speed"]
    assert checks[0].state == "ok"
    assert "/s, reads at " in checks[1].finding
    assert list(tmp_path.iterdir()) == []


def test_a_volume_that_cannot_be_written_is_a_failure(surround: Surround) -> None:
    (check,) = storage.check_offload(settings(offload_folder="/proc/offload"), surround())
    assert check.state == "failure"
    assert "cannot be written by user" in check.finding
    assert "fsGroup" in check.remedy


def test_a_volume_that_is_a_file_is_a_failure(surround: Surround, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (check,) = storage.check_offload(settings(offload_folder=file), surround())
    assert check.state == "failure"


def test_a_volume_in_memory_is_a_warning(surround: Surround) -> None:
    checks = storage.check_offload(settings(offload_folder="/dev/shm/doctor-test"), surround())
    assert next(iter(checks)).state == "warning"
    Path("/dev/shm/doctor-test").rmdir()


def test_a_slow_volume_is_a_warning(
    surround: Surround, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk cannot be had, so the measurement stands in for one."""
    monkeypatch.setattr(storage, "measure_file", lambda _: 50e6)
    _, speed = storage.check_offload(settings(offload_folder=tmp_path), surround())
    assert speed.state == "warning"
    assert "local NVMe" in speed.remedy


def test_without_an_offload_folder_nothing_is_measured(surround: Surround) -> None:
    (check,) = storage.check_offload(settings(), surround())
    assert check.state == "skipped"


def test_temporary_files_that_cannot_be_written_are_a_failure(surround: Surround) -> None:
    assert storage.check_temporary(surround()).state == "ok"
    assert storage.check_temporary(surround(temporary=Path("/proc"))).state == "failure"


def test_a_model_that_is_not_mounted_is_a_failure(tmp_path: Path) -> None:
    assert storage.check_model_directory(settings(model_dir=tmp_path)).state == "failure"
    (tmp_path / "config.json").write_text("{}")
    assert storage.check_model_directory(settings(model_dir=tmp_path)).state == "ok"
    assert storage.check_model_directory(settings(model_id="org/model")).state == "skipped"
