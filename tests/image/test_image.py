"""The image's metadata and contents."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.image.containers import DOCKER, container, docker, run_of_the_readme
from tests.test_readme import ROOT

pytestmark = pytest.mark.timeout(1200)  # the first test builds the image


def test_the_image_has_labels_and_a_numeric_user(image: str) -> None:
    [metadata] = json.loads(docker("image", "inspect", image))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    config = metadata["Config"]
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    assert config["User"] == "1000:0"
    assert config["Entrypoint"] == ["predictor"]
    assert config["Cmd"][0] == "serve"
    assert set(config["ExposedPorts"]) == {"8080/tcp", "8081/tcp"}
    assert not config.get("Volumes")
    assert not config.get("StopSignal")
    assert {"HOME=/tmp", "HF_HUB_DISABLE_TELEMETRY=1"} <= set(config["Env"])
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": project["version"],
        "licenses": project["license"],
        "source": "",
    }


def test_no_layer_tells_how_it_was_made_but_by_what_it_copied(image: str) -> None:
    history = docker("history", "--no-trunc", "--format={{.CreatedBy}}", image)
    assert "/opt/venv" in history
    for word in ("uv", "TORCH_INDEX_URL", "http", "token", "password"):
        assert word not in history


@pytest.fixture(scope="module")
def contents(image: str) -> dict[str, Any]:
    """Return the report of `contents.py`."""
    done = subprocess.run(
        [
            DOCKER,
            "run",
            "--rm",
            "-i",
            "--user=0",
            "--network=none",
            "--entrypoint=python",
            image,
            "-",
        ],
        input=(Path(__file__).parent / "contents.py").read_text(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_every_module_is_compiled_since_nobody_can_write_bytecode_later(
    contents: dict[str, Any],
) -> None:
    assert contents["modules"] > 10_000
    assert contents["without bytecode"] == []


def test_nothing_but_what_serves_is_on_board_and_only_root_may_change_it(
    contents: dict[str, Any],
) -> None:
    assert contents["in /opt"] == ["demo-model", "predictor", "venv"]
    [metadata] = [name for name in contents["in /opt/predictor"] if name.endswith(".dist-info")]
    assert contents["in /opt/predictor"] == sorted([metadata, "bin", "predictor"])
    assert contents["in /tmp and root's caches"] == []
    assert contents["writable"] == []
    assert {"torch", "kserve", "accelerate-predictor"} <= set(contents["installed"])
    assert not {"pip", "uv", "pytest", "mypy"} & set(contents["installed"])


ASK = """
import httpx
body = {"instances": ["Today the weather is really nice"], "parameters": {"max_new_tokens": 8}}
response = httpx.post("http://127.0.0.1:8080/v1/models/demo:predict", json=body, timeout=60)
print(response.status_code, response.json()["predictions"][0]["text"])
"""


def test_without_arguments_and_without_a_network_it_serves_the_demo_and_writes_only_to_tmp(
    image: str,
) -> None:
    words = run_of_the_readme(
        "8081 accelerate-predictor",
        {
            "--publish 8080:8080 --publish 8081:8081": "--network=none",
            "accelerate-predictor": image,
        },
    )
    with container(*words, name="demo") as demo:
        demo.await_ready()
        assert demo.python(ASK) == "200  and I am planning on going to the"
        assert demo.python("import os; print(os.getuid(), os.getgid())") == "1000 0"
        demo.terminate()
        assert demo.await_end() == 0
        assert {line for line in demo.written() if not line.startswith("A /tmp/")} <= {"C /tmp"}
