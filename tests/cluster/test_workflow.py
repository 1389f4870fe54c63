"""The workflow that runs the cluster tests in kind, checked by parsing it."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.cluster import conftest, objects

WORKFLOW = yaml.load(
    (objects.ROOT / ".github" / "workflows" / "cluster.yaml").read_text(), yaml.CSafeLoader
)
JOB = WORKFLOW["jobs"]["cluster"]
SCRIPTS = {step["name"]: step["run"] for step in JOB["steps"] if "run" in step}


def test_it_may_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in JOB


def test_every_foreign_action_is_pinned_to_a_commit() -> None:
    used = [step["uses"] for step in JOB["steps"] if "uses" in step]

    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in used)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_bash_can_parse_every_script(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_no_script_contains_text_of_a_pull_request() -> None:
    assert not [script for script in SCRIPTS.values() if "${{" in script]


def test_the_image_is_the_one_that_the_manifests_name() -> None:
    image = WORKFLOW["env"]["IMAGE"]

    assert f"image: {image}\n" in (objects.MANIFESTS / "serving-runtime.yaml").read_text()
    assert image == conftest.IMAGE


def test_the_tests_are_run_and_may_not_skip() -> None:
    (step,) = (step for step in JOB["steps"] if step.get("name") == "Test")

    assert step["env"]["REQUIRE_CLUSTER"] == "1"
    assert f"{conftest.KUBECONFIG}=" in step["run"]
    assert "pytest tests/cluster" in step["run"]


def on_of(workflow: dict[Any, Any]) -> Any:
    """Return the triggers. YAML 1.1 parses the key `on` as true."""
    return workflow[True]


def test_it_runs_for_pull_requests_and_by_hand() -> None:
    assert {"pull_request", "workflow_dispatch"} <= set(on_of(WORKFLOW))
