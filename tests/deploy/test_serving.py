"""A real server answers the probes and the chart's test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.helm import CHART, MANIFESTS, ROOT, read
from tests.server.process import Served, serve


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    with serve(ROOT / "examples" / "demo-model", "--max_model_len=64", name="demo") as server:
        yield server.await_ready()


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_is_answered(demo: Served, probe: str) -> None:
    (runtime,) = read(MANIFESTS / "serving-runtime.yaml")
    http_get = runtime["spec"]["containers"][0][probe]["httpGet"]
    assert httpx.get(f"{demo.url}{http_get['path']}", timeout=30).status_code == 200


@pytest.mark.parametrize(("model", "passes"), [("demo", True), ("other", False)])
def test_helm_test_passes_if_the_model_answers(demo: Served, model: str, passes: bool) -> None:
    script = (CHART / "files" / "ask.py").read_text()
    done = subprocess.run(
        [sys.executable, "-c", script, demo.url, model],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode == 0) is passes, done.stderr
    assert [line[:3] for line in done.stdout.splitlines()] == (["V1:", "V2:"] if passes else [])
