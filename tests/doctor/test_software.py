"""Versions of libraries, and the driver."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch

from predictor.doctor import software
from tests.doctor.conftest import Surround


def missing(name: str) -> str:
    raise PackageNotFoundError(name)


def test_the_installed_libraries_are_those_of_the_tests(surround: Surround) -> None:
    checks = list(software.check_libraries(surround()))
    assert {check.name for check in checks} == {
        *("torch", "transformers", "accelerate", "kserve", "uvicorn")
    }
    assert {check.state for check in checks} == {"ok"}


def test_another_version_is_a_warning_and_a_missing_library_a_failure(surround: Surround) -> None:
    newer = list(software.check_libraries(surround(version=lambda _: "99.0")))
    assert {check.state for check in newer} == {"warning"}
    assert "Install torch>=2.13,<2.14" in newer[0].remedy
    gone = list(software.check_libraries(surround(version=missing)))
    assert {check.state for check in gone} == {"failure"}


def test_a_torch_for_processors_beside_a_driver_is_a_failure(
    surround: Surround, tmp_path: Path
) -> None:
    assert software.check_driver(surround(proc=tmp_path)).state == "skipped"
    file = tmp_path / "driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Release\n")
    check = software.check_driver(surround(proc=tmp_path))
    is_for_gpus = torch.version.cuda is not None
    assert check.state == ("ok" if is_for_gpus else "failure")
    assert "580.95.05" in check.finding
