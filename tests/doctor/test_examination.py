"""The whole command, in this process and as one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from predictor.doctor.check import Check
from predictor.doctor.examination import as_json, as_text, examine, has_failure
from tests.doctor.conftest import Surround, settings
from tests.pod.conftest import GIB, MIB, Host

CHECKS = (
    Check("one", "ok", "All is well."),
    Check("two", "warning", "It is slow.", "Use another."),
    Check("three", "failure", "It is not there.", "Mount it."),
)


def test_the_text_says_what_to_do() -> None:
    assert as_text(CHECKS).splitlines() == [
        "ok       one: All is well.",
        "WARNING  two: It is slow.",
        "         -> Use another.",
        "FAILURE  three: It is not there.",
        "         -> Mount it.",
        "failures: 1, warnings: 1, ok: 1, skipped: 0",
    ]


def test_warnings_alone_are_no_failure() -> None:
    assert has_failure(CHECKS)
    assert not has_failure(CHECKS[:2])
    assert json.loads(as_json(CHECKS[:2]))["ok"] is True


def test_beside_a_server_that_fills_its_memory_nothing_large_is_imported(
    host: Host, surround: Surround
) -> None:
    host.belongs_to("0::/")
    host.v2("", 4 * GIB, 0, anon=0)
    host.write("cgroup/memory.current", 4 * GIB - 100 * MIB)
    around = surround(proc=host.proc, cgroup_root=host.cgroup_root)
    checks = {check.name: check for check in examine(settings(http_port=0, grpc_port=0), around)}
    assert not {"torch", "driver", "GPUs", "own Pod"} & checks.keys()
    assert "copy of the pod" in checks["libraries, GPUs, offload speed"].remedy


def test_the_checks_for_little_memory_import_no_torch() -> None:
    program = (
        "import sys; from predictor.doctor import examination, machine;"
        "from predictor.doctor.check import Surroundings; from predictor.settings import Settings;"
        "machine.has_room = lambda _: False;"
        "list(examination.examine(Settings(http_port=0, grpc_port=0), Surroundings()));"
        "print('torch' in sys.modules, 'kserve' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("is_there", [True, False])
def test_the_command_ends_with_78_if_a_check_fails(tmp_path: Path, is_there: bool) -> None:
    model = Path("examples/demo-model") if is_there else tmp_path
    command = [
        *(sys.executable, "-m", "predictor", "doctor", "--output", "json"),
        *(f"--model_dir={model}", f"--offload_folder={tmp_path / 'offload'}"),
        *("--http_port=0", "--grpc_port=0"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (0 if is_there else 78), done.stderr
    states = {check["name"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    assert states["model directory"] == ("ok" if is_there else "failure")
    assert states["offload volume"] == "ok"
