"""A real server as a user of TorchServe starts and calls it: the old archive, file and routes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import forked
from tests.migration.packing import LAYOUTS, SEED, seed
from tests.server.process import Served, serve

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
PROMPT = "Today the weather is really nice and I am planning on"
SETUP = {**SEED, "max_memory": {"cpu": "10GB"}}
"""The example's own `setup_config.json` without the GPU, which this machine may lack."""


@pytest.fixture(scope="module", params=LAYOUTS)
def bloom(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Served]:
    """The example's archive in each layout, imported by the command and served as it is then."""
    folder = tmp_path_factory.mktemp("store")
    archive = seed(folder, DEMO, layout=request.param, max_memory=SETUP["max_memory"])
    forked.run(["import-torchserve", str(archive), f"--into={folder}/imported"], check=True)
    with serve(folder / "imported", name="bloom") as server:
        yield server.await_ready()


def test_the_examples_curl_line_works_unchanged(bloom: Served, tmp_path: Path) -> None:
    (tmp_path / "sample_text.txt").write_text(PROMPT)
    command = ["curl", "-v", f"{bloom.url}/predictions/bloom", "-T", "sample_text.txt"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert "HTTP/1.1 200" in done.stderr
    assert done.stdout.startswith(PROMPT)
    assert len(done.stdout) > len(PROMPT)


def test_every_way_in_gives_the_same_seeded_reply(bloom: Served) -> None:
    parameters = {"seed": 3, "max_new_tokens": 12}
    with httpx.Client(base_url=bloom.url, timeout=60) as client:
        old = client.post(
            "/predictions/bloom/1.0", json={"data": PROMPT, "parameters": parameters}
        ).text
        instances = [{"data": PROMPT, "parameters": parameters}]
        v1 = client.post("/v1/models/bloom:predict", json={"instances": instances}).json()
        tensor = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}
        body = {"inputs": [tensor], "parameters": parameters}
        v2 = client.post("/v2/models/bloom/infer", json=body).json()
    assert old.startswith(PROMPT)
    assert v1 == {"predictions": [old]}
    assert v2["outputs"][0]["data"] == [old]


def test_what_means_nothing_any_more_is_said_once_by_name_and_how_to_ask(bloom: Served) -> None:
    for name in ("low_cpu_mem_usage", "offload_state_dict"):
        assert bloom.log.count(name) == 1
    assert f"curl {bloom.url}/predictions/bloom" in bloom.log


def test_the_models_are_listed(bloom: Served) -> None:
    assert httpx.get(f"{bloom.url}/ping").json() == {"status": "Healthy"}
    (described,) = httpx.get(f"{bloom.url}/models/bloom").json()
    assert described["modelVersion"] == "1.0"
    assert described["jobQueueStatus"] == {"remainingCapacity": 128, "pendingRequests": 0}


def test_a_gpu_that_is_not_there_is_a_sentence_and_an_end(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "bloom")
    options = {**SETUP, "max_memory": {"7": "10GB", "cpu": "10GB"}}
    (folder / "setup_config.json").write_text(json.dumps(options))
    with serve(folder) as server:
        assert server.process.wait(60) == 78
        last = server.log.strip().splitlines()[-1]
    assert "max_memory names GPU 7" in last
    assert "take the key '7' out of max_memory" in last
