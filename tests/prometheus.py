"""Prometheus for tests: `promtool`, and a server that scrapes real targets.

If the programs are missing, a test that needs them is skipped, or fails if REQUIRE_PROMETHEUS=1.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.skips import skip_or_fail

_SECONDS_TO_START = 30


@dataclass(frozen=True, slots=True)
class Target:
    """An address to scrape, and the labels that a scrape in a cluster would add."""

    address: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query; fails the test if it is malformed."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules with their health."""
        answer = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


def program(name: str) -> str:
    """Return the path of a program of Prometheus."""
    path = shutil.which(name)
    if path is None:
        skip_or_fail(f"{name} is not installed", "REQUIRE_PROMETHEUS")
    return path


def rule_faults(folder: Path, rules: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]) -> str:
    """Run ``promtool test rules``; return what it prints, empty if all tests pass.

    Args:
        folder: An empty folder.
        rules: The groups of rules.
        tests: Their tests, in promtool's form.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": list(tests)}
    (folder / "tests.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [program("promtool"), "test", "rules", "tests.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@contextlib.contextmanager
def scraping(
    folder: Path, targets: Sequence[Target], rules: Mapping[str, Any] | None = None
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes targets every second, and end it.

    Args:
        folder: An empty folder for its files.
        targets: What it scrapes.
        rules: Groups of rules that it evaluates.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules or {"groups": []})))
    groups = [{"targets": [one.address], "labels": dict(one.labels)} for one in targets]
    port = _free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "predictor", "static_configs": groups}],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, folder / "log")
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/-/ready", timeout=5).status_code == 200:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
